//! The vehicles, and one vehicle with its batches in the order of its logs.

use axum::extract::{Path, Query, State};
use axum::response::Html;
use maud::html;
use serde::Deserialize;

use super::api::{Api, segment, with_parameters};
use super::layout::{PageError, Section, page as whole_page};
use super::parts::{
    as_of, code_link, field, firmware_link, grouped, items, number, shown, status, text, time, vehicle_link,
};

#[derive(Deserialize)]
pub struct ListParameters {
    vehicle_id: Option<String>,
    platform: Option<String>,
    firmware: Option<String>,
    cursor: Option<String>,
}

/// `/vehicles`.
pub async fn list(State(api): State<Api>, Query(parameters): Query<ListParameters>) -> Result<Html<String>, PageError> {
    let ListParameters { vehicle_id, platform, firmware, cursor } = &parameters;
    let filters =
        [("vehicle_id", vehicle_id.as_deref()), ("platform", platform.as_deref()), ("firmware", firmware.as_deref())];
    let answered = api.get_recent("/vehicles", &[&filters[..], &[("cursor", cursor.as_deref())]].concat()).await?;
    let answer = &answered.value;
    let next = answer["next_cursor"].as_str();
    let body = html! {
        h1 { "Vehicles" }
        form.filters action="/vehicles" {
            (field("vehicle_id", "Vehicle", vehicle_id.as_deref()))
            (field("platform", "Platform", platform.as_deref()))
            (field("firmware", "Firmware", firmware.as_deref()))
            button { "Search" }
        }
        div.scroll tabindex="0" role="region" aria-label="Vehicles" {
            table {
                thead { tr {
                    th scope="col" { "VIN" } th scope="col" { "Vehicle" } th scope="col" { "Platform" } th scope="col" { "Firmware" }
                    th.number scope="col" { "Batches" } th scope="col" { "First seen" } th scope="col" { "Last seen" }
                } }
                tbody {
                    @for vehicle in items(answer, "vehicles") {
                        tr {
                            td { (vehicle_link(text(vehicle, "vin"))) }
                            td { (shown(text(vehicle, "vehicle_id"))) }
                            td { (shown(text(vehicle, "platform"))) }
                            td { (firmware_link(text(vehicle, "firmware"))) }
                            td.number { (grouped(number(vehicle, "batches"))) }
                            td { (time(&vehicle["first_seen"])) }
                            td { (time(&vehicle["last_seen"])) }
                        }
                    }
                }
            }
        }
        (as_of(&answered))
        @if next.is_some() {
            p { a rel="next" href=(with_parameters("/vehicles", &[&filters[..], &[("cursor", next)]].concat())) { "More vehicles" } }
        }
    };
    Ok(whole_page("Vehicles", Section::Vehicles, None, &body))
}

#[derive(Deserialize)]
pub struct Parameters {
    cursor: Option<String>,
}

/// `/vehicles/{vin}`.
pub async fn page(
    State(api): State<Api>,
    Path(vin): Path<String>,
    Query(parameters): Query<Parameters>,
) -> Result<Html<String>, PageError> {
    let path = format!("/vehicles/{}", segment(&vin));
    let answered = api.get_recent(&path, &[]).await?;
    let vehicle = &*answered.value;
    let history = api.get_recent(&format!("{path}/history"), &[("cursor", parameters.cursor.as_deref())]).await?;
    let history = &*history.value;
    let batches = items(history, "batches");
    let next = history["next_cursor"].as_str();
    let body = html! {
        h1 { "Vehicle " (shown(&vin)) }
        (as_of(&answered))
        dl {
            dt { "Vehicle" } dd { (shown(text(vehicle, "vehicle_id"))) }
            dt { "Platform" } dd { (shown(text(vehicle, "platform"))) }
            dt { "Firmware" } dd { (firmware_link(text(vehicle, "firmware"))) }
            dt { "Batches" } dd { a href=(with_parameters("/batches", &[("vin", Some(&*vin))])) { (grouped(number(vehicle, "batches"))) } }
            dt { "Last seen" } dd { (time(&vehicle["last_seen"])) }
        }
        section {
            h2 { "History" }
            ol.history {
                @for (index, batch) in batches.iter().enumerate() {
                    // The batch before it in the logs' time is the next in the list.
                    @let before = batches.get(index + 1);
                    @let changed = before.is_some_and(|before| text(before, "firmware") != text(batch, "firmware"));
                    li {
                        a href={ "/batches/" (segment(text(batch, "batch_id"))) } { (time(&batch["recorded_first"])) } " " (status(text(batch, "status")))
                        " " (firmware_link(text(batch, "firmware"))) @if changed { " " strong { "firmware changed" } }
                        ", " (grouped(number(batch, "total_errors"))) " occurrences on " (grouped(number(batch, "total_lines"))) " lines"
                        @let had = |batch: &serde_json::Value, code: &str| batch["codes"].get(code).is_some();
                        @if let Some(before) = before {
                            @for (code, _) in batch["codes"].as_object().into_iter().flatten().filter(|(code, _)| !had(before, code)).take(20) {
                                " " span.new { "+" (code_link(code)) }
                            }
                            @for (code, _) in before["codes"].as_object().into_iter().flatten().filter(|(code, _)| !had(batch, code)).take(20) {
                                " " span.gone { "−" (code_link(code)) }
                            }
                        }
                    }
                }
            }
            @if next.is_some() { p { a rel="next" href=(with_parameters(&path, &[("cursor", next)])) { "Earlier batches" } } }
        }
        section {
            h2 { "Codes" }
            div.scroll tabindex="0" role="region" aria-label="Codes of the vehicle" {
                table {
                    thead { tr { th scope="col" { "Code" } th.number scope="col" { "Occurrences" } th.number scope="col" { "Batches" } th scope="col" { "First seen" } th scope="col" { "Last seen" } } }
                    tbody {
                        @for code in items(vehicle, "codes") {
                            tr {
                                td { (code_link(text(code, "code"))) }
                                td.number { (grouped(number(code, "count"))) }
                                td.number { (grouped(number(code, "batches"))) }
                                td { (time(&code["first_seen"])) }
                                td { (time(&code["last_seen"])) }
                            }
                        }
                    }
                }
            }
        }
    };
    Ok(whole_page(&format!("Vehicle {vin}"), Section::Vehicles, None, &body))
}
