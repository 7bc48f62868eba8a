//! A batch: its progress, codes, files, and the lines with codes.

use std::collections::BTreeMap;

use axum::extract::{Path, Query, State};
use axum::response::Html;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::api::{Api, segment, with_parameters};
use super::chart;
use super::diagnosis;
use super::layout::{Follows, PageError, Section, page as whole_page};
use super::parts::{
    SEVERITIES, bytes, choice, code_link, field, firmware_link, grouped, items, labels, number, severity, shown,
    status, text, time, vehicle_link,
};

/// Codes and files that the page shows; the report has all.
const ROWS: usize = 200;

/// The levels of lines, the worst first.
const LEVELS: [&str; 7] = ["critical", "error", "warning", "notice", "info", "debug", "trace"];

/// Lines with codes on a page.
const LINES: &str = "50";

#[derive(Deserialize)]
pub struct Parameters {
    code: Option<String>,
    file: Option<String>,
    severity: Option<String>,
    level: Option<String>,
    component: Option<String>,
    since: Option<String>,
    until: Option<String>,
    context: Option<String>,
    cursor: Option<String>,
}

impl Parameters {
    fn filters(&self) -> Vec<(&'static str, Option<&str>)> {
        vec![
            ("code", self.code.as_deref()),
            ("file", self.file.as_deref()),
            ("severity", self.severity.as_deref()),
            ("level", self.level.as_deref()),
            ("component", self.component.as_deref()),
            ("since", self.since.as_deref()),
            ("until", self.until.as_deref()),
            ("context", self.context.as_deref()),
        ]
    }
}

/// `/batches/{id}`.
pub async fn page(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(parameters): Query<Parameters>,
) -> Result<Html<String>, PageError> {
    let path = format!("/batches/{}", segment(&id));
    let batch = api.get(&path, &[]).await?;
    let progress = api.get(&format!("{path}/progress"), &[]).await?;
    let report = api.get(&format!("{path}/report"), &[]).await?;
    let shape = [
        ("batch_id", Some(&*id)),
        ("group_by", Some("severity")),
        ("bucket", Some(bucket(&report))),
        ("limit", Some("10000")),
    ];
    let lines =
        [&parameters.filters()[..], &[("cursor", parameters.cursor.as_deref()), ("limit", Some(LINES))]].concat();
    let (errors_path, diagnosis_path) = (format!("{path}/errors"), format!("{path}/diagnosis"));
    let (timeline, errors, diagnosis, before) = tokio::join!(
        api.get("/fleet/timeline", &shape),
        api.get(&errors_path, &lines),
        api.get(&diagnosis_path, &[]),
        batch_before(&api, &batch),
    );
    let (timeline, errors, before) = (timeline?, errors?, before?);
    // There is none before the batch is gathered.
    let diagnosis = diagnosis.ok();
    let codes = items(&report, "codes");
    let new = codes.iter().filter(|code| code["new_for_vehicle"] == true).count();
    let percent = progress["percent"].as_f64().unwrap_or(0.0);
    let body = html! {
        h1 { "Batch of " (vehicle_link(text(&batch, "vin"))) }
        dl id="facts" {
            dt { "Status" } dd { (status(text(&batch, "status"))) }
            dt { "Vehicle" } dd { (shown(text(&batch, "vehicle_id"))) }
            dt { "Firmware" } dd { (firmware_link(text(&batch, "firmware"))) }
            @if !text(&batch, "platform").is_empty() { dt { "Platform" } dd { (shown(text(&batch, "platform"))) } }
            dt { "Created" } dd { (time(&batch["created_at"])) }
            dt { "Recorded" } dd { (time(&report["recorded_first"])) " to " (time(&report["recorded_last"])) }
            @if batch["labels"].as_object().is_some_and(|labels| !labels.is_empty()) { dt { "Labels" } dd { (labels(&batch["labels"])) } }
            dt { "Epoch" } dd { (number(&report, "epoch")) }
        }
        div id="progress" aria-live="polite" {
            label { "Progress " progress max="100" value=(percent) { (format!("{percent:.0} %")) } }
            " " (grouped(number(&progress, "parsed_files"))) " of " (grouped(number(&progress, "total_files"))) " files, "
            (grouped(number(&progress, "lines"))) " lines, " (bytes(number(&progress, "bytes_received")))
            @if report["final"] == true { ". The report is final." }
        }
        section id="diagnosis" aria-labelledby="diagnosis-title" {
            h2 id="diagnosis-title" { "What stands out" }
            @match &diagnosis {
                Some(diagnosis) => {
                    (findings(&path, diagnosis))
                    (diagnosis::explanation(&diagnosis["explanation"]))
                    (diagnosis::cases(diagnosis))
                }
                None => p.quiet { "Known when the batch is completed." },
            }
        }
        section id="codes" aria-labelledby="codes-title" {
            h2 id="codes-title" { "Codes" }
            p { (grouped(number(&report, "total_errors"))) " occurrences of " (grouped(codes.len() as u64)) " codes on "
                (grouped(number(&report, "error_lines"))) " of " (grouped(number(&report, "total_lines"))) " lines"
                @if new > 0 { "; " strong { (new) " new for this vehicle" } } "." }
            (codes_table(&path, codes))
        }
        @if let Some((before, report_before)) = &before {
            section id="changes" aria-labelledby="changes-title" {
                h2 id="changes-title" { "Since the batch before" }
                (changes(&report, before, report_before))
            }
        }
        section id="time" aria-labelledby="time-title" {
            h2 id="time-title" { "Over time" }
            (chart::timeline(&timeline, "Occurrences by severity", |since, until| {
                let mut filters = parameters.filters();
                filters.retain(|(name, _)| *name != "since" && *name != "until");
                filters.extend([("since", Some(since)), ("until", Some(until))]);
                format!("{}#lines", with_parameters(&path, &filters))
            }))
        }
        section id="files" aria-labelledby="files-title" {
            h2 id="files-title" { "Files" }
            (files_table(&path, items(&report, "files")))
        }
        section id="lines" aria-labelledby="lines-title" {
            h2 id="lines-title" { "Lines with codes" }
            form.filters action={ (path) "#lines" } {
                (field("code", "Code", parameters.code.as_deref()))
                (field("file", "File", parameters.file.as_deref()))
                (choice("severity", "Severity", &SEVERITIES, parameters.severity.as_deref()))
                (choice("level", "Level", &LEVELS, parameters.level.as_deref()))
                (field("component", "Component", parameters.component.as_deref()))
                (field("since", "Since", parameters.since.as_deref()))
                (field("until", "Until", parameters.until.as_deref()))
                label { "Lines around " input type="number" name="context" min="0" max="50" value=(parameters.context.as_deref().unwrap_or("0")); }
                button { "Show" }
                " " a href={ (path) "#lines" } { "Show all" }
            }
            (lines_list(&path, items(&errors, "errors")))
            @if let Some(cursor) = errors["next_cursor"].as_str() {
                @let next = [&parameters.filters()[..], &[("cursor", Some(cursor))]].concat();
                p { a rel="next" href={ (with_parameters(&path, &next)) "#lines" } { "More lines" } }
            }
        }
    };
    let title = format!("Batch of {}", text(&batch, "vin"));
    let events = format!("/api/v1{path}/events");
    Ok(whole_page(&title, Section::Batches, Some(Follows { events: &events, every_ms: 250, is_old: false }), &body))
}

/// The batch of the vehicle that was created before, and its report.
async fn batch_before(api: &Api, batch: &Value) -> Result<Option<(Value, Value)>, PageError> {
    let query = [("vin", Some(text(batch, "vin"))), ("cursor", Some(text(batch, "id"))), ("limit", Some("1"))];
    let found = api.get("/batches", &query).await?;
    let Some(before) = items(&found, "batches").first() else { return Ok(None) };
    // It may be deleted meanwhile.
    let report = api.get(&format!("/batches/{}/report", segment(text(before, "id"))), &[]).await.ok();
    Ok(report.map(|report| (before.clone(), report)))
}

/// The codes that are new, gone, more or fewer than in another batch.
fn changes(report: &Value, before: &Value, report_before: &Value) -> Markup {
    let counts = |report: &'_ Value| -> BTreeMap<String, u64> {
        items(report, "codes").iter().map(|code| (text(code, "code").to_owned(), number(code, "count"))).collect()
    };
    let (now, then) = (counts(report), counts(report_before));
    let of = |counts: &BTreeMap<String, u64>, code: &str| counts.get(code).copied().unwrap_or(0);
    let mut codes: Vec<(&str, u64, u64)> = now
        .keys()
        .chain(then.keys().filter(|code| !now.contains_key(*code)))
        .map(|code| (code.as_str(), of(&then, code), of(&now, code)))
        .filter(|(_, before, after)| before != after)
        .collect();
    codes.sort_by_key(|(code, before, after)| (std::cmp::Reverse(before.abs_diff(*after)), *code));
    let firmwares = [text(before, "firmware"), text(report, "firmware")];
    html! {
        p {
            a href={ "/batches/" (segment(text(before, "id"))) } { (time(&before["created_at"])) }
            @if firmwares[0] != firmwares[1] { ", with " (firmware_link(firmwares[0])) }
            ": " (grouped(number(report_before, "total_errors"))) " occurrences on " (grouped(number(report_before, "total_lines"))) " lines."
        }
        @if codes.is_empty() { p.quiet { "The same codes, as often." } }
        @else {
            div.scroll tabindex="0" role="region" aria-label="Changed codes" {
                table {
                    thead { tr { th scope="col" { "Code" } th.number scope="col" { "Before" } th.number scope="col" { "Now" } th scope="col" { "" } } }
                    tbody {
                        @for (code, before, after) in codes.iter().take(ROWS) {
                            tr {
                                td { (code_link(code)) }
                                td.number { (grouped(*before)) }
                                td.number { (grouped(*after)) }
                                td { @if *before == 0 { span.new { "new" } } @else if *after == 0 { span.gone { "gone" } } }
                            }
                        }
                    }
                }
            }
            @if codes.len() > ROWS { p.quiet { "The first " (ROWS) " of " (codes.len()) " codes." } }
        }
    }
}

/// The length of a bar, so that a batch of hours and one of months both have a shape.
fn bucket(report: &Value) -> &'static str {
    let at = |field: &str| chrono::DateTime::parse_from_rfc3339(text(report, field)).ok();
    let minutes = at("recorded_first").zip(at("recorded_last")).map_or(0, |(first, last)| (last - first).num_minutes());
    match minutes {
        ..=60 => "1m",
        61..=600 => "10m",
        601..=4320 => "1h",
        _ => "1d",
    }
}

fn codes_table(path: &str, codes: &[Value]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Codes" {
            table {
                thead { tr {
                    th scope="col" { "Code" } th scope="col" { "Severity" } th.number scope="col" { "Count" }
                    th scope="col" { "New" } th.number scope="col" { "Ratio to the fleet" } th scope="col" { "First seen" } th scope="col" { "Last seen" }
                    th scope="col" { "Example" }
                } }
                tbody {
                    @for code in codes.iter().take(ROWS) {
                        @let name = text(code, "code");
                        tr {
                            td { (code_link(name)) }
                            td { (severity(text(code, "severity"))) }
                            td.number { a href={ (with_parameters(path, &[("code", Some(name))])) "#lines" } { (grouped(number(code, "count"))) } }
                            td { @if code["new_for_vehicle"] == true { strong { "new" } } }
                            td.number { @if let Some(ratio) = code["fleet_ratio"].as_f64() { (format!("{ratio:.1}")) } }
                            td { (time(&code["first_seen"])) }
                            td { (time(&code["last_seen"])) }
                            td.example { code { (shown(text(&code["example"], "text"))) } }
                        }
                    }
                }
            }
        }
        @if codes.len() > ROWS { p.quiet { "The first " (ROWS) " of " (codes.len()) " codes." } }
    }
}

fn files_table(path: &str, files: &[Value]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Files" {
            table {
                thead { tr {
                    th scope="col" { "Name" } th.number scope="col" { "Size" } th.number scope="col" { "Lines" }
                    th.number scope="col" { "Occurrences" } th.number scope="col" { "Generation" } th scope="col" { "Download" }
                } }
                tbody {
                    @for file in files.iter().take(ROWS) {
                        @let name = text(file, "name");
                        @let address = format!("/api/v1{path}/files/{}", segment(name));
                        tr {
                            td { a href={ (with_parameters(path, &[("file", Some(name))])) "#lines" } { (shown(name)) }
                                @if let Some(failure) = file["failure"].as_str() { " " strong { (shown(failure)) } } }
                            td.number { (bytes(number(file, "bytes"))) }
                            td.number { (grouped(number(file, "lines"))) }
                            td.number { (grouped(number(file, "errors"))) }
                            td.number { (number(file, "generation")) }
                            td { a href=(address) { "text" } " " a href={ (address) "?raw=true" } download=(name) { "as sent" } }
                        }
                    }
                }
            }
        }
        @if files.is_empty() { p.quiet { "No files." } }
        @if files.len() > ROWS { p.quiet { "The first " (ROWS) " of " (files.len()) " files." } }
    }
}

/// The findings of a diagnosis, each with its evidence and what is known of its code.
fn findings(path: &str, diagnosis: &Value) -> Markup {
    html! {
        p { (shown(text(diagnosis, "summary"))) }
        @if !items(diagnosis, "findings").is_empty() {
            ol.findings {
                @for finding in items(diagnosis, "findings") {
                    @let (code, catalog) = (text(finding, "code"), &finding["catalog"]);
                    @let filters = [("code", Some(code))];
                    li {
                        (severity(text(finding, "severity"))) " " (code_link(code)) " "
                        a href={ (with_parameters(path, &filters)) "#lines" } { (grouped(number(finding, "count"))) " lines" }
                        @if !text(catalog, "meaning").is_empty() { p { (shown(text(catalog, "meaning"))) } }
                        ul {
                            @for evidence in items(finding, "evidence") {
                                li { (shown(text(evidence, "text")))
                                    @if let Some(p_value) = evidence["p_value"].as_f64() { span.quiet { (format!(" (p {p_value:.2e})")) } } }
                            }
                            @if !text(catalog, "cause").is_empty() { li { "Usual cause: " (shown(text(catalog, "cause"))) } }
                            @if !text(catalog, "remedy").is_empty() { li { "What to do: " (shown(text(catalog, "remedy"))) } }
                        }
                    }
                }
            }
        }
    }
}

fn lines_list(path: &str, lines: &[Value]) -> Markup {
    html! {
        @if lines.is_empty() { p.quiet { "No lines." } }
        ol.lines {
            @for line in lines {
                @let (file, at) = (text(line, "file"), number(line, "line"));
                @let from = at.saturating_sub(20).max(1).to_string();
                @let around = [("from_line", Some(&*from)), ("lines", Some("41"))];
                li id={ "line-" (segment(file)) "-" (at) } {
                    div.place {
                        a href={ "#line-" (segment(&segment(file))) "-" (at) } { (shown(file)) ":" (at) }
                        " " (time(&line["ts"])) " " (severity(text(line, "severity"))) " " (code_link(text(line, "code"))) " "
                        span.quiet { (shown(text(line, "component"))) } " "
                        a href=(with_parameters(&format!("/api/v1{path}/files/{}", segment(file)), &around)) { "around it" }
                    }
                    pre {
                        @for before in items(line, "before") { span.context { (shown(before.as_str().unwrap_or_default())) "\n" } }
                        span.hit { (shown(text(line, "text"))) } "\n"
                        @for after in items(line, "after") { span.context { (shown(after.as_str().unwrap_or_default())) "\n" } }
                    }
                }
            }
        }
    }
}
