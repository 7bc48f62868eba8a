//! A firmware compared with another one.

use axum::extract::{Query, State};
use axum::response::Html;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Api, with_parameters};
use super::chart;
use super::layout::{PageError, Section, page as whole_page};
use super::parts::{choice, code_link, firmware_link, grouped, items, number, shown, text, time};

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

/// The firmwares, the newest first: `name`, `vehicles`, `batches`, `first`, `last`.
pub async fn firmwares(api: &Api) -> Result<Vec<Value>, PageError> {
    let rows = api
        .query(
            "SELECT firmware, count(DISTINCT vin), count(*), min(created_at), max(created_at) FROM batches \
             WHERE firmware IS NOT NULL GROUP BY firmware ORDER BY min(created_at) DESC, firmware DESC",
        )
        .await?;
    let firmware =
        |row: &Value| json!({"name": row[0], "vehicles": row[1], "batches": row[2], "first": row[3], "last": row[4]});
    Ok(items(&rows, "rows").iter().map(firmware).collect())
}

/// `/firmware`.
pub async fn page(State(api): State<Api>, Query(parameters): Query<Parameters>) -> Result<Html<String>, PageError> {
    let firmwares = firmwares(&api).await?;
    let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let name = |index: usize| firmwares.get(index).map(|one| text(one, "name").to_owned());
    let firmware = given(&parameters.firmware).or_else(|| name(0));
    // The one before it, or any other.
    let position = firmwares.iter().position(|one| Some(text(one, "name")) == firmware.as_deref());
    let before = position
        .and_then(|position| name(position + 1))
        .or_else(|| name(0))
        .filter(|other| Some(other) != firmware.as_ref());
    let against = given(&parameters.against).or(before);
    let platform = given(&parameters.platform);
    let platforms = api.query("SELECT DISTINCT platform FROM batches WHERE platform IS NOT NULL ORDER BY 1").await?;
    let platforms: Vec<&str> = items(&platforms, "rows").iter().filter_map(|row| row[0].as_str()).collect();
    let names: Vec<&str> = firmwares.iter().map(|one| text(one, "name")).collect();
    let compared = match (&firmware, &against) {
        (Some(firmware), Some(against)) => {
            let names =
                [("firmware", Some(firmware.as_str())), ("against", Some(against)), ("platform", platform.as_deref())];
            Some(api.get("/fleet/compare", &names).await)
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
    let adoption = api.get("/fleet/timeline", &shape).await?;
    let body = html! {
        h1 { "Firmware" }
        form.filters action="/firmware" {
            (choice("firmware", "Firmware", &names, firmware.as_deref()))
            (choice("against", "against", &names, against.as_deref()))
            (choice("platform", "Platform", &platforms, platform.as_deref()))
            button { "Compare" }
        }
        @match compared {
            Some(Ok(compared)) => {
                p { (firmware_link(text(&compared, "firmware"))) " on " (grouped(number(&compared, "vehicles"))) " vehicles, "
                    (firmware_link(text(&compared, "against"))) " on " (grouped(number(&compared, "against_vehicles"))) " vehicles. "
                    (design(&compared)) " The unit is the vehicle; q is the false discovery rate." }
                (exposure(&compared))
                @if !items(&compared, "warnings").is_empty() { p.quiet { "The fleet is too large to compare each vehicle with itself, or within platforms." } }
                @for (title, change) in [("Codes that more vehicles have", "more"), ("Codes that fewer vehicles have", "less"), ("No difference", "same")] {
                    section {
                        h2 { (title) }
                        (compared_table(&compared, Some(change), ROWS))
                    }
                }
            }
            Some(Err(error)) => p role="alert" { (shown(error.detail())) },
            None => p.quiet { "There are no two firmwares to compare." },
        }
        section aria-labelledby="adoption-title" {
            h2 id="adoption-title" { "Adoption" }
            (chart::timeline(&adoption, "Batches by firmware", |_, _| "/batches".to_owned()))
            div.scroll tabindex="0" role="region" aria-label="Firmwares" {
                table {
                    thead { tr { th scope="col" { "Firmware" } th.number scope="col" { "Vehicles" } th.number scope="col" { "Batches" } th scope="col" { "First batch" } th scope="col" { "Last batch" } } }
                    tbody {
                        @for one in &firmwares {
                            tr {
                                td { a href=(with_parameters("/batches", &[("firmware", Some(text(one, "name")))])) { (shown(text(one, "name"))) } }
                                td.number { (grouped(number(one, "vehicles"))) }
                                td.number { (grouped(number(one, "batches"))) }
                                td { (time(&one["first"])) }
                                td { (time(&one["last"])) }
                            }
                        }
                    }
                }
            }
        }
    };
    Ok(whole_page("Firmware", Section::Firmware, None, &body))
}

/// The codes of a comparison that changed in a way.
pub fn compared_table(compared: &Value, change: Option<&str>, rows: usize) -> Markup {
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
                        th.number scope="col" { "p" } th.number scope="col" { "q" } th scope="col" { "" }
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
