//! What pages are made of: texts from logs, numbers, times, links, tables of batches.

use maud::{Markup, Render, html};
use serde_json::Value;

use super::api::{segment, with_parameters};
use super::recent::Answered;

/// A text from a client or a log, shown harmlessly: control characters, escapes of terminals and marks that change the
/// direction of writing are replaced by visible ones.
pub fn shown(text: &str) -> Shown<'_> {
    Shown(text)
}

/// A text as it is shown.
pub struct Shown<'t>(&'t str);

impl Render for Shown<'_> {
    fn render_to(&self, to: &mut String) {
        let visible: String = self.0.chars().map(visible).collect();
        visible.render_to(to);
    }
}

fn visible(character: char) -> char {
    match character {
        '\t' => character,
        // The pictures of control characters.
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(character)).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        '\u{80}'..='\u{9f}' => '\u{fffd}',
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' => {
            '\u{fffd}'
        }
        _ => character,
    }
}

/// A text of an object; empty if it has none.
pub fn text<'v>(object: &'v Value, field: &str) -> &'v str {
    object[field].as_str().unwrap_or_default()
}

/// A number of an object; 0 if it has none.
pub fn number(object: &Value, field: &str) -> u64 {
    object[field].as_u64().unwrap_or_default()
}

/// The objects of a list.
pub fn items<'v>(object: &'v Value, field: &str) -> &'v [Value] {
    object[field].as_array().map_or(&[], Vec::as_slice)
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A number of bytes.
pub fn bytes(number: u64) -> String {
    indicatif::HumanBytes(number).to_string()
}

/// A time, to the second.
pub fn time(value: &Value) -> Markup {
    let full = value.as_str().unwrap_or_default();
    let short: String = full.chars().take(19).map(|character| if character == 'T' { ' ' } else { character }).collect();
    html! { @if !full.is_empty() { time datetime=(full) title=(full) { (short) } } }
}

/// A severity, with its name and not only its colour.
pub fn severity(name: &str) -> Markup {
    let class = match name {
        "critical" | "error" | "warning" | "info" => name,
        _ => "",
    };
    html! { span class={ "severity " (class) } { (shown(name)) } }
}

/// A link to a code.
pub fn code_link(code: &str) -> Markup {
    html! { a href={ "/codes/" (segment(code)) } { code { (shown(code)) } } }
}

/// A link to a vehicle.
pub fn vehicle_link(vin: &str) -> Markup {
    html! { a href={ "/vehicles/" (segment(vin)) } { (shown(vin)) } }
}

/// A link to a firmware, compared with the one before it.
pub fn firmware_link(firmware: &str) -> Markup {
    html! {
        @if firmware.is_empty() { span.quiet { "none" } }
        @else { a href=(with_parameters("/firmware", &[("firmware", Some(firmware))])) { (shown(firmware)) } }
    }
}

/// A note at something that takes long to compute, if there may be a newer one.
pub fn as_of(answered: &Answered) -> Markup {
    html! { @if let Some(epoch) = answered.old_epoch() { p.quiet { "As of epoch " (epoch) "; newer uploads follow in a moment." } } }
}

/// A table of batches.
pub fn batches_table(batches: &[Value]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Batches" {
            table {
                thead { tr {
                    th scope="col" { "Created" } th scope="col" { "Vehicle" } th scope="col" { "Firmware" }
                    th scope="col" { "Platform" } th scope="col" { "Status" } th.number scope="col" { "Files" }
                    th scope="col" { "Labels" }
                } }
                tbody {
                    @for batch in batches {
                        tr {
                            td { a href={ "/batches/" (segment(text(batch, "id"))) } { (time(&batch["created_at"])) } }
                            td { (vehicle_link(text(batch, "vin"))) }
                            td { (firmware_link(text(batch, "firmware"))) }
                            td { (shown(text(batch, "platform"))) }
                            td { (status(text(batch, "status"))) }
                            td.number { (grouped(number(batch, "parsed_files"))) " of " (grouped(number(batch, "total_files"))) }
                            td { (labels(&batch["labels"])) }
                        }
                    }
                }
            }
        }
        @if batches.is_empty() { p.quiet { "No batches." } }
    }
}

/// The status of a batch.
pub fn status(status: &str) -> Markup {
    html! { span class={ "status " (status) } { (status) } }
}

/// The labels of a batch.
pub fn labels(labels: &Value) -> Markup {
    html! {
        @for (name, value) in labels.as_object().into_iter().flatten() {
            span.label { (shown(name)) "=" (shown(value.as_str().unwrap_or_default())) } " "
        }
    }
}

/// A field of a form for a filter.
pub fn field(name: &str, label: &str, value: Option<&str>) -> Markup {
    html! { label { (label) " " input type="text" name=(name) value=[value] autocomplete="off"; } }
}

/// A choice of a form for a filter; the first means all.
pub fn choice(name: &str, label: &str, values: &[&str], chosen: Option<&str>) -> Markup {
    html! {
        label { (label) " "
            select name=(name) {
                option value="" { "all" }
                @for value in values {
                    option value=(value) selected[chosen == Some(*value)] { (shown(value)) }
                }
            }
        }
    }
}

/// The severities, worst first.
pub const SEVERITIES: [&str; 4] = ["critical", "error", "warning", "info"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_logs_cannot_do_anything() {
        let evil = "<script>alert(1)</script>\x1b[31mred\u{202e}gnp.exe&";
        let rendered = html! { (shown(evil)) }.into_string();
        assert_eq!(rendered, "&lt;script&gt;alert(1)&lt;/script&gt;\u{241b}[31mred\u{fffd}gnp.exe&amp;");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
