//! Output formats of reports and rows.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use anyhow::Result;
use argus_query::Report;
use argus_query::reads::report::CodeReport;
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use arrow::csv::WriterBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::cli::ReportFormat;
use crate::cli::terminal;
use crate::http::list;

/// The width of a report table that is not printed to a terminal, and the smallest width, in characters.
const WIDTH_DEFAULT: usize = 120;
const WIDTH_MIN: usize = 60;
/// The maximum width of the column of codes; a longer code makes its row longer.
const CODE_CHARACTERS_MAX: usize = 32;

/// Prints a report.
pub fn report(out: &mut dyn Write, report: &Report, format: ReportFormat) -> Result<()> {
    match format {
        ReportFormat::Json => {
            serde_json::to_writer_pretty(&mut *out, report)?;
            writeln!(out)?;
        }
        ReportFormat::Csv => report_csv(out, report)?,
        ReportFormat::Table => report_table(out, report)?,
    }
    out.flush()?;
    Ok(())
}

/// A row for each code in each file.
fn report_csv(out: &mut dyn Write, report: &Report) -> Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(["file", "code", "count", "rule", "severity"])?;
    let codes: HashMap<&str, &CodeReport> = report.codes.iter().map(|code| (code.code.as_str(), code)).collect();
    for file in &report.files {
        for (name, count) in &file.codes {
            let Some(code) = codes.get(name.as_str()) else { continue };
            writer.write_record([&file.name, name, &count.to_string(), &code.rule, code.severity.as_str()])?;
        }
    }
    writer.flush()?;
    Ok(())
}

fn report_table(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let width = terminal::columns().unwrap_or(WIDTH_DEFAULT).max(WIDTH_MIN);
    let codes: Vec<_> = report.codes.iter().map(|code| (code, terminal::line(&code.code))).collect();
    let longest = codes.iter().map(|(_, name)| name.chars().count()).max().unwrap_or(0);
    let code_width = longest.clamp(4, CODE_CHARACTERS_MAX);
    if !codes.is_empty() {
        writeln!(out, "{:>9}  {:<8}  {:<code_width$}  EXAMPLE", "COUNT", "SEVERITY", "CODE")?;
    }
    for (code, name) in &codes {
        let example = &code.example;
        let location = format!("{}:{}", terminal::line(&example.file), example.line);
        let prefix = format!("{:>9}  {:<8}  {name:<code_width$}  {location}  ", code.count, code.severity.as_str());
        let room = width.saturating_sub(prefix.chars().count());
        writeln!(out, "{}", format!("{prefix}{}", example_text(&example.text, &code.code, room)).trim_end())?;
    }
    if !codes.is_empty() {
        writeln!(out)?;
    }
    writeln!(
        out,
        "{}, {}, in {} of {} of {} ({})",
        counted(report.codes.len() as u64, "code"),
        counted(report.total_errors, "occurrence"),
        counted(report.error_lines, "line"),
        report.total_lines,
        counted(report.total_files, "file"),
        counted(report.total_bytes, "byte")
    )?;
    for file in &report.files {
        let name = terminal::line(&file.name);
        if file.binary {
            writeln!(out, "{name} is binary: it contains bytes that are not text")?;
        }
        if file.codes_limited {
            writeln!(
                out,
                "{name} has too many different codes of one rule: the codes over the limit are counted as OTHER:"
            )?;
        }
    }
    Ok(())
}

/// A number with its noun: `1 code`, `2 codes`.
pub fn counted(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// The part of a line around the code that fits into `room` characters, without the line's time. The code is marked as
/// in `»P0A1F-87«`.
fn example_text(text: &str, code: &str, room: usize) -> String {
    let text = terminal::line(without_time(text.trim()));
    let letters: Vec<char> = text.chars().collect();
    let (start, length) = position_of(&letters, code).unwrap_or((0, 0));
    let marks = if length > 0 { 2 } else { 0 };
    let end = start + length;
    if room < length + marks + 2 {
        return String::new();
    }
    let (mut from, mut to) = (0, letters.len());
    if letters.len() + marks > room {
        // The text that explains a code is mostly before it.
        let context = room - length - marks - 2;
        from = start.saturating_sub(context.div_ceil(2));
        to = (from + context + length).min(letters.len()).max(end);
        from = from.min(to.saturating_sub(context + length).max(from.min(start)));
    }
    let piece = |from: usize, to: usize| letters[from..to.max(from)].iter().collect::<String>();
    let (first, last) = (if from > 0 { "…" } else { "" }, if to < letters.len() { "…" } else { "" });
    match length {
        0 => format!("{first}{}{last}", piece(from, to)),
        _ => format!("{first}{}»{}«{}{last}", piece(from, start), piece(start, end), piece(end, to)),
    }
}

/// The position and length of a code in a line, in characters. The line may write the code in another case, or only a
/// part of it.
fn position_of(letters: &[char], code: &str) -> Option<(usize, usize)> {
    let parts = [
        code,
        code.split_once('-').map_or(code, |(first, _)| first),
        code.split_once(':').map_or(code, |(_, rest)| rest),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).find_map(|part| {
        let wanted: Vec<char> = part.chars().map(|letter| letter.to_ascii_lowercase()).collect();
        let matches = |letters: &[char]| letters.iter().zip(&wanted).all(|(a, b)| a.to_ascii_lowercase() == *b);
        let start = letters.windows(wanted.len()).position(matches)?;
        Some((start, wanted.len()))
    })
}

/// A line without up to three leading words that are dates, times or numbers.
fn without_time(line: &str) -> &str {
    const WORDS_MAX: usize = 3;
    const MONTHS: &str = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec";
    let mut rest = line;
    for _ in 0..WORDS_MAX {
        let Some((word, after)) = rest.split_once(char::is_whitespace) else { break };
        let is_time = word.chars().any(|letter| letter.is_ascii_digit())
            && word.chars().all(|letter| letter.is_ascii_digit() || "-:.,/+TZ[]()<>".contains(letter));
        let is_month = MONTHS.split(' ').any(|month| month == word);
        if !is_time && !is_month {
            break;
        }
        rest = after.trim_start();
    }
    rest
}

/// Prints some fields of JSON objects as a table that fits the terminal: the last column is cut.
pub fn values(out: &mut dyn Write, columns: &[&str], rows: &[Value]) -> io::Result<()> {
    let field = |row: &Value, column: &str| match list::field(row, column) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => terminal::line(text).into_owned(),
        Some(Value::Array(texts)) => {
            texts.iter().filter_map(Value::as_str).map(terminal::line).collect::<Vec<_>>().join(" ")
        }
        Some(Value::Number(number)) if number.is_f64() => format!("{:.4}", number.as_f64().unwrap_or_default()),
        Some(other) => other.to_string(),
    };
    let header = columns.iter().map(|column| column.replace(['.', '_'], " ").to_uppercase()).collect();
    let mut lines: Vec<Vec<String>> = vec![header];
    lines.extend(rows.iter().map(|row| columns.iter().map(|column| field(row, column)).collect()));
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let width = terminal::columns().unwrap_or(WIDTH_DEFAULT).max(WIDTH_MIN);
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let text = cells.collect::<Vec<_>>().join("  ");
        let cut: String = text.trim_end().chars().take(width).collect();
        writeln!(out, "{}", cut.trim_end())?;
    }
    Ok(())
}

/// Prints rows as a table, each on one line.
pub fn table(out: &mut dyn Write, batches: &[RecordBatch]) -> Result<()> {
    let shown: Vec<RecordBatch> = batches.iter().map(shown).collect::<Result<_>>()?;
    writeln!(out, "{}", pretty_format_batches(&shown)?)?;
    Ok(())
}

/// The rows as strings, escaped for a terminal.
fn shown(batch: &RecordBatch) -> Result<RecordBatch> {
    let options = FormatOptions::default();
    let columns = batch.columns().iter().map(|column| -> Result<ArrayRef> {
        let values = ArrayFormatter::try_new(column, &options)?;
        let text = |row| Ok(terminal::line(&values.value(row).try_to_string()?).into_owned());
        let texts: Vec<String> = (0..column.len()).map(text).collect::<Result<_>>()?;
        Ok(Arc::new(StringArray::from(texts)))
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let names = batch.schema_ref().fields().iter().map(|field| terminal::line(field.name()));
    let fields: Vec<Field> = names.map(|name| Field::new(name, DataType::Utf8, true)).collect();
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &rows)?)
}

/// Prints rows as CSV with a header; times as RFC 3339.
pub fn csv(out: &mut dyn Write, batches: &[RecordBatch]) -> Result<()> {
    let mut writer = WriterBuilder::new().with_header(true).build(out);
    for batch in batches {
        writer.write(batch)?;
    }
    Ok(())
}

/// Prints rows as a JSON array of objects.
pub fn json(out: &mut dyn Write, batches: &[RecordBatch]) -> Result<()> {
    let mut objects = Vec::new();
    for batch in batches {
        let schema = batch.schema();
        for row in argus_query::results::json::rows(batch)? {
            objects.push(Object { schema: schema.clone(), row });
        }
    }
    serde_json::to_writer_pretty(&mut *out, &objects)?;
    writeln!(out)?;
    Ok(())
}

/// A row as a JSON object, with its members in the order of the columns.
struct Object {
    schema: SchemaRef,
    row: Value,
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let names = self.schema.fields().iter().map(|field| field.name());
        serializer.collect_map(names.zip(self.row.as_array().into_iter().flatten()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_fits_and_shows_its_code() {
        let line =
            "2026-03-01 10:15:30,123 ERROR [main] com.acme.Updater - stored the code p0a1f:87 after the third try";
        for (code, room, shown) in [
            ("P0A1F-87", 200, "ERROR [main] com.acme.Updater - stored the code »p0a1f«:87 after the third try"),
            ("P0A1F-87", 40, "…dater - stored the code »p0a1f«:87 afte…"),
            ("P0A1F-87", 12, "…e »p0a1f«:…"),
            ("P0A1F-87", 5, ""),
            ("ERRNO:5", 20, "ERROR [main] com.ac…"),
        ] {
            let text = example_text(line, code, room);
            assert!(text.chars().count() <= room, "{text:?} is longer than {room}");
            assert!(shown.is_empty() == text.is_empty() && text.contains('»') == shown.contains('»'), "{text:?}");
            if room == 200 {
                assert_eq!(text, shown);
            }
        }
        assert_eq!(without_time("Mar  1 10:15:30 host updater: x"), "host updater: x");
        assert_eq!(counted(1, "code"), "1 code");
        assert_eq!(counted(2, "code"), "2 codes");
    }
}
