//! The codes of the fleet, and one code: where it appears, since when, with example lines.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Html;
use maud::html;
use serde::Deserialize;

use super::api::{Api, segment, with_parameters};
use super::chart;
use super::layout::{PageError, Section, page as whole_page};
use super::parts::{
    SEVERITIES, as_of, choice, code_link, field, firmware_link, grouped, items, number, severity, shown, text, time,
    vehicle_link,
};

#[derive(Deserialize)]
pub struct ListParameters {
    group_by: Option<String>,
    platform: Option<String>,
    firmware: Option<String>,
    component: Option<String>,
    severity: Option<String>,
    since: Option<String>,
    until: Option<String>,
}

/// `/codes`.
pub async fn list(State(api): State<Api>, Query(parameters): Query<ListParameters>) -> Result<Html<String>, PageError> {
    let ListParameters { group_by, platform, firmware, component, severity, since, until } = &parameters;
    let filters = [
        ("group_by", group_by.as_deref()),
        ("platform", platform.as_deref()),
        ("firmware", firmware.as_deref()),
        ("component", component.as_deref()),
        ("severity", severity.as_deref()),
        ("since", since.as_deref()),
        ("until", until.as_deref()),
        ("limit", Some("500")),
    ];
    let answer = api.get("/fleet/codes", &filters).await?;
    let by = text(&answer, "group_by");
    let body = html! {
        h1 { "Codes" }
        form.filters action="/codes" {
            (choice("group_by", "By", &["firmware", "platform", "vehicle", "component"], group_by.as_deref()))
            (field("platform", "Platform", platform.as_deref()))
            (field("firmware", "Firmware", firmware.as_deref()))
            (field("component", "Component", component.as_deref()))
            (choice("severity", "Severity", &SEVERITIES, severity.as_deref()))
            (field("since", "Since", since.as_deref()))
            (field("until", "Until", until.as_deref()))
            button { "Show" }
        }
        div.scroll tabindex="0" role="region" aria-label="Codes" {
            table {
                thead { tr {
                    th scope="col" { "Code" } th scope="col" { (by) } th.number scope="col" { "Occurrences" } th.number scope="col" { "Batches" }
                    th.number scope="col" { "Vehicles" } th scope="col" { "First seen" } th scope="col" { "Last seen" }
                } }
                tbody {
                    @for code in items(&answer, "codes") {
                        tr {
                            td { (code_link(text(code, "code"))) }
                            td { @if by == "firmware" { (firmware_link(text(code, "group"))) } @else { (shown(text(code, "group"))) } }
                            td.number { (grouped(number(code, "count"))) }
                            td.number { (grouped(number(code, "batches"))) }
                            td.number { (grouped(number(code, "vehicles"))) }
                            td { (time(&code["first_seen"])) }
                            td { (time(&code["last_seen"])) }
                        }
                    }
                }
            }
        }
        @if answer["truncated"] == true { p.quiet { "There are more; use filters, or " a href="/sql" { "SQL" } "." } }
    };
    Ok(whole_page("Codes", Section::Codes, None, &body))
}

/// `/codes/{code}`.
pub async fn page(State(api): State<Api>, Path(code): Path<String>) -> Result<Html<String>, PageError> {
    let quoted = format!("'{}'", code.replace('\'', "''"));
    let of_code = |sql: &str| sql.replace("$code", &quoted);
    let sql = [
        "SELECT b.firmware, b.platform, sum(c.count), count(DISTINCT b.vin), min(c.first_seen), max(c.last_seen), max(c.severity) \
         FROM error_counts c JOIN batches b USING (batch_id) WHERE c.code = $code GROUP BY 1, 2 ORDER BY 1, 2",
        "SELECT batch_id, vin, file, line, ts, text FROM errors JOIN batches USING (batch_id) WHERE code = $code \
         ORDER BY batch_id DESC, file, line LIMIT 10",
        "SELECT o.code, count(DISTINCT o.batch_id) FROM error_counts o JOIN (SELECT DISTINCT batch_id FROM error_counts WHERE code = $code) b \
         ON o.batch_id = b.batch_id WHERE o.code <> $code GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 10",
        "SELECT b.vin, sum(c.count) FROM error_counts c JOIN batches b USING (batch_id) WHERE c.code = $code \
         GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20",
    ]
    .map(of_code);
    let over_time =
        [("code", Some(&*code)), ("group_by", Some("firmware")), ("bucket", Some("1d")), ("limit", Some("10000"))];
    // At once: each of them may wait for a new answer.
    let (places, examples, with, vehicles, timeline) = tokio::join!(
        api.query_recent(&sql[0]),
        api.query_recent(&sql[1]),
        api.query_recent(&sql[2]),
        api.query_recent(&sql[3]),
        api.get_recent("/fleet/timeline", &over_time),
    );
    let places = places?;
    let rows = items(&places.value, "rows");
    if rows.is_empty() {
        return Err(PageError::new(StatusCode::NOT_FOUND, &format!("no line has the code {code}")));
    }
    let (examples, with, vehicles, timeline) = (examples?, with?, vehicles?, timeline?);
    let platforms: BTreeSet<&str> = rows.iter().map(|row| row[1].as_str().unwrap_or_default()).collect();
    let mut by_firmware: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for row in rows {
        let of = by_firmware.entry(row[0].as_str().unwrap_or_default()).or_default();
        *of.entry(row[1].as_str().unwrap_or_default()).or_default() += row[2].as_u64().unwrap_or(0);
    }
    let most = by_firmware.values().flat_map(BTreeMap::values).copied().max().unwrap_or(1).max(1);
    // A code of the user's own rules is not in the catalogue.
    let known = api.get(&format!("/codes/{}", segment(&code)), &[]).await?;
    let description = &known["description"];
    let body = html! {
        h1 { "Code " code { (shown(&code)) } }
        @if !text(description, "meaning").is_empty() {
            p { (shown(text(description, "meaning"))) " " span.quiet { "(" (shown(text(description, "source"))) ")" } }
            @for (name, field) in [("Usual cause", "cause"), ("What to do", "remedy")] {
                @if !text(description, field).is_empty() { p { (name) ": " (shown(text(description, field))) } }
            }
        }
        p { (severity(rows[0][6].as_str().unwrap_or_default())) " "
            (grouped(rows.iter().filter_map(|row| row[2].as_u64()).sum())) " occurrences. "
            a href=(with_parameters("/sql", &[("sql", Some(&of_code("SELECT * FROM errors WHERE code = $code LIMIT 100")))])) { "All lines in SQL" } }
        (as_of(&places))
        section { h2 { "Over time" } (chart::timeline(&timeline.value, "Occurrences by firmware", |since, until| {
            with_parameters("/codes", &[("since", Some(since)), ("until", Some(until))])
        })) }
        section {
            h2 { "Where it appears" }
            div.scroll tabindex="0" role="region" aria-label="Firmware by platform" {
                table {
                    thead { tr { th scope="col" { "Firmware" } @for platform in &platforms { th.number scope="col" { (shown(if platform.is_empty() { "no platform" } else { platform })) } } } }
                    tbody {
                        @for (firmware, counts) in &by_firmware {
                            tr {
                                th scope="row" { (firmware_link(firmware)) }
                                @for platform in &platforms {
                                    @let count = counts.get(platform).copied().unwrap_or(0);
                                    // Four steps, and the number in each.
                                    @let step = if count == 0 { 0 } else { 1 + 3 * count / most };
                                    td class={ "number heat-" (step) } { (grouped(count)) }
                                }
                            }
                        }
                    }
                }
            }
        }
        section { h2 { "Example lines" }
            ol.lines {
                @for row in items(&examples.value, "rows") {
                    @let (id, file) = (row[0].as_str().unwrap_or_default(), row[2].as_str().unwrap_or_default());
                    @let filters = [("code", Some(&*code)), ("file", Some(file))];
                    li {
                        div.place { a href={ (with_parameters(&format!("/batches/{}", segment(id)), &filters)) "#lines" } { (shown(file)) ":" (row[3].as_u64().unwrap_or(0)) }
                            " " (time(&row[4])) " " (vehicle_link(row[1].as_str().unwrap_or_default())) }
                        pre { span.hit { (shown(row[5].as_str().unwrap_or_default())) } }
                    }
                }
            }
        }
        section { h2 { "Vehicles" }
            ul { @for row in items(&vehicles.value, "rows") { li { (vehicle_link(row[0].as_str().unwrap_or_default())) " " (grouped(row[1].as_u64().unwrap_or(0))) } } }
        }
        section { h2 { "Codes in the same batches" }
            ul { @for row in items(&with.value, "rows") { li { (code_link(row[0].as_str().unwrap_or_default())) " in " (grouped(row[1].as_u64().unwrap_or(0))) " batches" } } }
        }
    };
    Ok(whole_page(&format!("Code {code}"), Section::Codes, None, &body))
}
