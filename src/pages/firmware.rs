//! A firmware compared with another one.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::Html;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::api::{Api, with_parameters};
use super::chart;
use super::layout::{PageError, Section, page as whole_page};
use super::parts::{as_of, choice, code_link, firmware_link, grouped, items, number, shown, text, time};

/// Codes that the page shows.
const ROWS: usize = 500;

/// Batches per vehicle are noted if they differ by this factor.
const EXPOSURE_NOTED: f64 = 1.5;

#[derive(Deserialize)]
pub struct Parameters {
    firmware: Option<String>,
    against: Option<String>,
    platform: Option<String>,
}

/// `/firmware`.
pub async fn page(State(api): State<Api>, Query(parameters): Query<Parameters>) -> Result<Html<String>, PageError> {
    let totals = api.get("/fleet/totals", &[]).await?;
    let firmwares = items(&totals, "firmwares");
    let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let name = |index: usize| firmwares.get(index).map(|one| text(one, "firmware").to_owned());
    let firmware = given(&parameters.firmware).or_else(|| name(0));
    // The one before it, or any other.
    let position = firmwares.iter().position(|one| Some(text(one, "firmware")) == firmware.as_deref());
    let before = position
        .and_then(|position| name(position + 1))
        .or_else(|| name(0))
        .filter(|other| Some(other) != firmware.as_ref());
    let against = given(&parameters.against).or(before);
    let platform = given(&parameters.platform);
    let platforms =
        api.query_recent("SELECT DISTINCT platform FROM batches WHERE platform IS NOT NULL ORDER BY 1").await?;
    let platforms: Vec<&str> = items(&platforms.value, "rows").iter().filter_map(|row| row[0].as_str()).collect();
    let names: Vec<&str> = firmwares.iter().map(|one| text(one, "firmware")).collect();
    let compared = match (&firmware, &against) {
        (Some(firmware), Some(against)) => {
            let names =
                [("firmware", Some(firmware.as_str())), ("against", Some(against)), ("platform", platform.as_deref())];
            Some(api.get_recent("/fleet/compare", &names).await)
        }
        _ => None,
    };
    let compared = match compared {
        Some(Err(error)) if !error.is_of_the_request() => return Err(error),
        compared => compared,
    };
    let shape = [
        ("of", Some("batches")),
        ("group_by", Some("firmware")),
        ("bucket", Some("1d")),
        ("limit", Some("10000")),
        ("platform", platform.as_deref()),
    ];
    let adoption = api.get_recent("/fleet/timeline", &shape).await?;
    let shape = [
        ("firmware", firmware.as_deref()),
        ("group_by", Some("code")),
        ("bucket", Some("1d")),
        ("limit", Some("10000")),
        ("platform", platform.as_deref()),
    ];
    let over_time = match &firmware {
        Some(_) => api.get_recent("/fleet/timeline", &shape).await?.value,
        None => Arc::default(),
    };
    let lines = chart::Sparklines::of(&over_time);
    let lines = Some(&lines).filter(|lines| !lines.is_empty());
    let body = html! {
        h1 { "Firmware" }
        form.filters action="/firmware" {
            (choice("firmware", "Firmware", &names, firmware.as_deref()))
            (choice("against", "against", &names, against.as_deref()))
            (choice("platform", "Platform", &platforms, platform.as_deref()))
            button { "Compare" }
        }
        @match compared {
            Some(Ok(answered)) => {
                @let compared = &answered.value;
                p { (firmware_link(text(compared, "firmware"))) " on " (grouped(number(compared, "vehicles"))) " vehicles, "
                    (firmware_link(text(compared, "against"))) " on " (grouped(number(compared, "against_vehicles"))) " vehicles. "
                    (design(compared)) " The unit is the vehicle; q is the false discovery rate." }
                (exposure(compared))
                @if !items(compared, "warnings").is_empty() { p.quiet { "The fleet is too large to compare each vehicle with itself, or within platforms." } }
                @for (title, change) in [("Codes that more vehicles have", "more"), ("Codes that fewer vehicles have", "less"), ("No difference", "same")] {
                    section {
                        h2 { (title) }
                        (compared_table(compared, Some(change), ROWS, lines))
                    }
                }
                (as_of(&answered))
            }
            Some(Err(error)) => p role="alert" { (shown(error.detail())) },
            None => p.quiet { "There are no two firmwares to compare." },
        }
        section aria-labelledby="adoption-title" {
            h2 id="adoption-title" { "Adoption" }
            (chart::timeline(&adoption.value, "Batches by firmware", |_, _| "/batches".to_owned()))
            (as_of(&adoption))
            div.scroll tabindex="0" role="region" aria-label="Firmwares" {
                table {
                    thead { tr { th scope="col" { "Firmware" } th.number scope="col" { "Vehicles" } th.number scope="col" { "Batches" } th.number scope="col" { "Lines" } th scope="col" { "First recorded" } } }
                    tbody {
                        @for one in firmwares {
                            tr {
                                td { a href=(with_parameters("/batches", &[("firmware", Some(text(one, "firmware")))])) { (shown(text(one, "firmware"))) } }
                                td.number { (grouped(number(one, "vehicles"))) }
                                td.number { (grouped(number(one, "batches"))) }
                                td.number { (grouped(number(one, "lines"))) }
                                td { (time(&one["first_recorded"])) }
                            }
                        }
                    }
                }
            }
        }
    };
    Ok(whole_page("Firmware", Section::Firmware, None, &body))
}

/// The codes of a comparison that changed in a way, each with its line over time if there are `lines`.
pub fn compared_table(
    compared: &Value,
    change: Option<&str>,
    rows: usize,
    lines: Option<&chart::Sparklines<'_>>,
) -> Markup {
    let codes: Vec<&Value> = items(compared, "codes")
        .iter()
        .filter(|code| change.is_none_or(|change| text(code, "change") == change))
        .collect();
    html! {
        @if codes.is_empty() { p.quiet { "None." } }
        @else {
            div.scroll tabindex="0" role="region" aria-label="Compared codes" {
                table {
                    thead { tr {
                        th scope="col" { "Code" } th scope="col" { "Vehicles" } th scope="col" { "Before" }
                        th.number scope="col" { "Difference" } th scope="col" { "95 % interval" }
                        th.number scope="col" { "p" } th.number scope="col" { "q" }
                        @if lines.is_some() { th scope="col" { "Over time" } }
                        th scope="col" { "" }
                    } }
                    tbody {
                        @for code in codes.iter().take(rows) {
                            @let against = &code["against"];
                            tr {
                                td { (code_link(text(code, "code"))) }
                                td { (grouped(number(code, "vehicles"))) " " (chart::share(code["share"].as_f64().unwrap_or(0.0))) }
                                td { (grouped(number(against, "vehicles"))) " " (chart::share(against["share"].as_f64().unwrap_or(0.0))) }
                                td.number { (percent(&code["difference"])) }
                                td { (percent(&code["interval"][0])) " to " (percent(&code["interval"][1])) }
                                td.number { (probability(&code["p_value"])) }
                                td.number { (probability(&code["q_value"])) }
                                @if let Some(lines) = lines { td { (lines.line(text(code, "code"))) } }
                                td {
                                    @if number(against, "vehicles") == 0 { strong { "new" } " " } @else if number(code, "vehicles") == 0 { "gone " }
                                    @for warning in items(code, "warnings") { span.quiet { (warning_text(warning.as_str().unwrap_or_default())) } " " }
                                }
                            }
                        }
                    }
                }
            }
        }
        @if codes.len() > rows { p.quiet { "The first " (rows) " of " (codes.len()) "." } }
    }
}

/// How the vehicles are compared.
fn design(compared: &Value) -> String {
    let pairs = grouped(number(compared, "both_vehicles"));
    match compared["codes"][0]["test"].as_str().unwrap_or_default() {
        "mcnemar_exact" => {
            format!(
                "The {pairs} vehicles that were seen with both are compared with themselves (McNemar's exact test)."
            )
        }
        "fisher_exact_two_sided" => {
            "All vehicles of one are compared with all of the other (Fisher's exact test).".to_owned()
        }
        "" => String::new(),
        _ => "Vehicles are compared within their platforms (Cochran, Mantel and Haenszel's test).".to_owned(),
    }
}

/// A note where the vehicles of one firmware have sent many more batches than those of the other.
fn exposure(compared: &Value) -> Markup {
    let batches = |name: &str| compared[name].as_f64().unwrap_or_default();
    let (with, against) = (batches("batches_per_vehicle"), batches("against_batches_per_vehicle"));
    html! {
        @if with > against * EXPOSURE_NOTED || against > with * EXPOSURE_NOTED {
            p.quiet { (format!("A vehicle has sent {with:.1} batches with one and {against:.1} with the other; more batches find more codes.")) }
        }
    }
}

/// What a warning of a comparison means.
fn warning_text(warning: &str) -> &str {
    match warning {
        "small_support" => "too few vehicles",
        "platforms_disagree" => "differs by platform",
        "exposure" => "not by batches",
        other => other,
    }
}

fn percent(value: &Value) -> String {
    value.as_f64().map_or_else(String::new, |value| format!("{:+.1} %", 100.0 * value))
}

fn probability(value: &Value) -> String {
    match value.as_f64() {
        Some(value) if value < 0.0001 => format!("{value:.0e}"),
        Some(value) => format!("{value:.4}"),
        None => String::new(),
    }
}
