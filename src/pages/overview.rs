//! The overview: occurrences over time, the newest firmware, the newest batches.

use axum::extract::{Query, State};
use axum::response::Html;
use chrono::{DateTime, NaiveTime, SecondsFormat, TimeDelta};
use maud::html;
use serde::Deserialize;

use super::api::{Api, with_parameters};
use super::chart;
use super::firmware::compared_table;
use super::layout::{Follows, PageError, Section, page as whole_page};
use super::parts::{as_of, batches_table, code_link, firmware_link, grouped, items, number, text};

/// Codes and batches that the overview shows.
const ROWS: usize = 10;

/// The spans of time that can be chosen, in days.
const DAYS: [u32; 3] = [7, 30, 365];

#[derive(Deserialize)]
pub struct Parameters {
    days: Option<u32>,
}

/// `/`.
pub async fn page(State(api): State<Api>, Query(parameters): Query<Parameters>) -> Result<Html<String>, PageError> {
    let days = parameters.days.filter(|days| (1..=3660).contains(days)).unwrap_or(30);
    let rows = ROWS.to_string();
    let batches = api.get("/batches", &[("limit", Some(&rows))]).await?;
    let codes = api.get("/fleet/codes", &[("limit", Some(&rows))]).await?;
    let totals = api.get("/fleet/totals", &[]).await?;
    let firmwares = items(&totals, "firmwares");
    let compared = match firmwares {
        [newest, before, ..] => {
            let names = [("firmware", Some(text(newest, "firmware"))), ("against", Some(text(before, "firmware")))];
            Some(api.get_recent("/fleet/compare", &names).await?)
        }
        _ => None,
    };
    // The logs' own times end where the last one ends, not now.
    let last = api.query_recent("SELECT max(recorded_last) FROM batches").await?;
    let last_at = last.value["rows"][0][0].as_str().and_then(|time| DateTime::parse_from_rfc3339(time).ok());
    let timeline = match last_at {
        Some(last) => {
            // From the beginning of a day, so that the question is the same all day.
            let since = (last - TimeDelta::days(i64::from(days))).date_naive().and_time(NaiveTime::MIN).and_utc();
            let since = since.to_rfc3339_opts(SecondsFormat::Secs, true);
            let bucket = if days > 14 { "1d" } else { "6h" };
            let parameters = [
                ("since", Some(&*since)),
                ("bucket", Some(bucket)),
                ("group_by", Some("firmware")),
                ("limit", Some("10000")),
            ];
            Some(api.get_recent("/fleet/timeline", &parameters).await?)
        }
        None => None,
    };
    let body = html! {
        h1 { "Overview" }
        div.totals id="totals" {
            div { b { (grouped(number(&totals, "batches"))) } " batches" }
            div { b { (grouped(number(&totals, "vehicles"))) } " vehicles" }
            div { b { (grouped(firmwares.len() as u64)) } " firmwares" }
        }
        section id="occurrences" aria-labelledby="occurrences-title" {
            h2 id="occurrences-title" { "Occurrences by firmware" }
            nav aria-label="Time" {
                @for one in DAYS {
                    a href={ "/?days=" (one) } aria-current=[(one == days).then_some("true")] { (one) " days" } " "
                }
            }
            @match &timeline {
                Some(timeline) => {
                    (chart::timeline(&timeline.value, "Occurrences of error codes", |since, until| {
                        with_parameters("/codes", &[("since", Some(since)), ("until", Some(until))])
                    }))
                    (as_of(timeline))
                }
                None => p { "Nothing was uploaded yet. " a href="/upload" { "Upload logs" } " or run "
                    code { "argus upload --vehicle ID --vin VIN LOGS" } "." },
            }
        }
        section id="newest-firmware" aria-labelledby="newest-firmware-title" {
            h2 id="newest-firmware-title" { "The newest firmware" }
            @match (&compared, firmwares.first()) {
                (Some(compared), _) => {
                    @let answer = &compared.value;
                    p { (firmware_link(text(answer, "firmware"))) " on " (grouped(number(answer, "vehicles")))
                        " vehicles, against " (firmware_link(text(answer, "against"))) " on "
                        (grouped(number(answer, "against_vehicles"))) ": codes that more vehicles have." }
                    (compared_table(answer, Some("more"), ROWS, None))
                    (as_of(compared))
                }
                (None, Some(newest)) => p { (firmware_link(text(newest, "firmware"))) " has no other firmware to compare with." },
                (None, None) => p.quiet { "No batch with lines names its firmware." },
            }
        }
        section id="top-codes" aria-labelledby="top-codes-title" {
            h2 id="top-codes-title" { "Most frequent codes" }
            div.scroll tabindex="0" role="region" aria-label="Most frequent codes" {
                table {
                    thead { tr { th scope="col" { "Code" } th scope="col" { "Firmware" } th.number scope="col" { "Occurrences" } th.number scope="col" { "Vehicles" } } }
                    tbody {
                        @for code in items(&codes, "codes") {
                            tr {
                                td { (code_link(text(code, "code"))) }
                                td { (firmware_link(text(code, "group"))) }
                                td.number { (grouped(number(code, "count"))) }
                                td.number { (grouped(number(code, "vehicles"))) }
                            }
                        }
                    }
                }
            }
        }
        section id="newest-batches" aria-labelledby="newest-batches-title" {
            h2 id="newest-batches-title" { "Newest batches" }
            (batches_table(items(&batches, "batches")))
        }
    };
    let is_old = [Some(&last), compared.as_ref(), timeline.as_ref()].into_iter().flatten().any(|one| one.is_old);
    // It reads the whole fleet, and every epoch computes it again.
    let follows = Follows { events: "/api/v1/events", every_ms: 3000, is_old };
    Ok(whole_page("Overview", Section::Overview, Some(follows), &body))
}
