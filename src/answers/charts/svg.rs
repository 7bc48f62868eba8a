//! Draws a report as an SVG, with a bar for each code.
//!
//! ```text
//!  12 codes, 440 occurrences
//!  vehicle-7, WVWZZZ1JZXW000001, firmware 7.2.1, 2026-03-01 10:15 to 2026-03-01 18:40 UTC
//!  Batch 01a2…, completed: 431 of 9,120 lines in 2 files have a code
//!
//!  P0A1F-87   ██████████████████ 120      3.2 × the fleet
//!  E_FAIL     ██████ 40                               new
//!
//!  ■ critical  ■ error  ■ warning  ■ info     new: for this vehicle
//! ```

use std::cmp::Reverse;
use std::fmt::{self, Display, Formatter, Write};

use argus_query::{CodeReport, Report};
use chrono::{DateTime, Utc};

/// The font that [`super::png`] draws with; a browser may use another.
pub const FONT: &str = "DejaVu Sans";

const WIDTH: u32 = 800;
const MARGIN: u32 = 24;
/// The x position of the bars; codes are left of it.
const BARS: u32 = 296;
/// The length of the longest bar; its count is right of it.
const LONGEST: f64 = 260.0;
/// The y position of the first bar.
const TOP: u32 = 110;
const ROW: u32 = 26;
/// The number of characters of a code that fit left of its bar.
const CODE_LETTERS: usize = 30;

const STYLE: &str = "
  text { font-family: 'DejaVu Sans', Verdana, sans-serif; font-size: 13px; fill: #24292f; }
  .title { font-size: 18px; font-weight: bold; }
  .quiet { fill: #656d76; font-size: 12px; }
  .critical { fill: #a40e26; }
  .error { fill: #d1572c; }
  .warning { fill: #d4a72c; }
  .info { fill: #8c959f; }
";

/// Draws a report with at most `top` codes. The result depends only on these.
pub fn draw(report: &Report, top: usize) -> String {
    let mut body = String::new();
    // Writing to a string cannot fail.
    let height = body_of(&mut body, report, top).unwrap_or_default();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n{body}</svg>\n",
        Escaped(&title(report))
    )
}

fn title(report: &Report) -> String {
    format!("{}, {}", counted(report.codes.len() as u64, "code"), counted(report.total_errors, "occurrence"))
}

/// The vehicle, its firmware, and the time range.
fn vehicle(report: &Report) -> String {
    let mut words = Vec::new();
    if let Some(batch) = &report.batch {
        words.extend([batch.vehicle_id.clone(), batch.vin.clone()].into_iter().filter(|word| !word.is_empty()));
        words.extend(batch.firmware.as_ref().map(|firmware| format!("firmware {firmware}")));
    }
    let minute = |time: &DateTime<Utc>| time.format("%Y-%m-%d %H:%M").to_string();
    if let (Some(first), Some(last)) = (&report.recorded_first, &report.recorded_last) {
        words.push(match minute(first) == minute(last) {
            true => format!("{} UTC", minute(first)),
            false => format!("{} to {} UTC", minute(first), minute(last)),
        });
    }
    words.join(", ")
}

fn subtitle(report: &Report) -> String {
    let batch = report.batch.as_ref().map(|batch| format!("Batch {}, {}: ", batch.id, batch.status));
    let lines = format!("{} of {}", thousands(report.error_lines), counted(report.total_lines, "line"));
    let files = counted(report.parsed_files, "file");
    format!("{}{lines} in {files} with a code", batch.unwrap_or_default())
}

/// Writes the content; returns its height.
fn body_of(body: &mut String, report: &Report, top: usize) -> Result<u32, fmt::Error> {
    text(body, [MARGIN, 38], "title", "start", &title(report))?;
    text(body, [MARGIN, 62], "quiet", "start", &vehicle(report))?;
    text(body, [MARGIN, 82], "quiet", "start", &subtitle(report))?;
    // Sorted by severity, not by count.
    let mut codes: Vec<&CodeReport> = report.codes.iter().collect();
    codes.sort_by_key(|code| Reverse(code.severity));
    let (shown, others) = codes.split_at(top.min(codes.len()));
    let most = shown.iter().map(|code| code.count).max().unwrap_or_default();
    let mut y = TOP;
    for code in shown {
        row(body, code, most, y)?;
        y += ROW;
    }
    if !others.is_empty() {
        let (codes, occurrences) =
            (counted(others.len() as u64, "more code"), others.iter().map(|code| code.count).sum());
        text(
            body,
            [MARGIN, y + 14],
            "quiet",
            "start",
            &format!("and {codes}, {}", counted(occurrences, "occurrence")),
        )?;
        y += ROW;
    }
    if shown.is_empty() {
        return Ok(y);
    }
    y += 10;
    for (index, severity) in ["critical", "error", "warning", "info"].into_iter().enumerate() {
        let x = MARGIN + 90 * index as u32;
        writeln!(body, "<rect class=\"{severity}\" x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" rx=\"2\"/>")?;
        text(body, [x + 18, y + 11], "quiet", "start", severity)?;
    }
    if shown.iter().any(|code| code.new_for_vehicle) {
        text(body, [WIDTH - MARGIN, y + 11], "quiet", "end", "new: for this vehicle")?;
    }
    Ok(y + 12 + MARGIN)
}

fn row(body: &mut String, code: &CodeReport, most: u64, y: u32) -> fmt::Result {
    let length = (LONGEST * code.count as f64 / most as f64).max(1.0);
    let count = thousands(code.count);
    writeln!(body, "<g><title>{}: {count}, {}</title>", Escaped(&code.code), Escaped(&code.example.text))?;
    text(body, [BARS - 10, y + 14], "code", "end", &cut(&code.code))?;
    let severity = code.severity.as_str();
    writeln!(
        body,
        "<rect class=\"{severity}\" x=\"{BARS}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" rx=\"2\"/>",
        ROW - 6
    )?;
    text(body, [BARS + length as u32 + 8, y + 14], "count", "start", &count)?;
    let fleet = match (code.new_for_vehicle, code.fleet_ratio) {
        (true, _) => "new".to_owned(),
        (false, Some(ratio)) => format!("{} × the fleet", digits(ratio)),
        (false, None) => String::new(),
    };
    text(body, [WIDTH - MARGIN, y + 14], "quiet", "end", &fleet)?;
    body.write_str("</g>\n")
}

fn text(body: &mut String, [x, y]: [u32; 2], class: &str, anchor: &str, words: &str) -> fmt::Result {
    writeln!(body, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>", Escaped(words))
}

/// A number with its noun.
fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(number), if number == 1 { "" } else { "s" })
}

/// A number with commas between groups of three digits.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A ratio with two significant digits, or a whole number from 10 on.
fn digits(ratio: f64) -> String {
    match ratio {
        ratio if ratio < 0.01 => "< 0.01".to_owned(),
        ratio if ratio < 1.0 => format!("{ratio:.2}"),
        ratio if ratio < 10.0 => format!("{ratio:.1}"),
        ratio => thousands(ratio.round() as u64),
    }
}

fn cut(code: &str) -> String {
    match code.char_indices().nth(CODE_LETTERS) {
        Some((end, _)) => format!("{}…", &code[..end]),
        None => code.to_owned(),
    }
}

/// Text escaped for XML 1.0; characters that XML does not allow are replaced.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '\t' => f.write_char(' ')?,
                '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => f.write_char(char::REPLACEMENT_CHARACTER)?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_formatted_for_people() {
        let formatted = [0, 999, 1000, 1_234_567].map(thousands);
        assert_eq!(formatted, ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.001, 0.25, 3.2, 17.0, 12_345.6].map(digits), ["< 0.01", "0.25", "3.2", "17", "12,346"]);
        assert_eq!([counted(1, "code"), counted(2, "code")], ["1 code", "2 codes"]);
    }

    #[test]
    fn text_is_escaped_and_cut() {
        assert_eq!(Escaped("</text>&\u{1}\t\"é").to_string(), "&lt;/text&gt;&amp;\u{fffd} \"é");
        assert_eq!(cut(&"é".repeat(31)), format!("{}…", "é".repeat(30)));
        assert_eq!(cut("E_FAIL"), "E_FAIL");
    }
}
