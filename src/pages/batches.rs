//! The batches, newest first, with filters.

use axum::extract::{Query, State};
use axum::response::Html;
use maud::html;
use serde::Deserialize;

use super::api::{Api, with_parameters};
use super::layout::{Follows, PageError, Section, page as whole_page};
use super::parts::{batches_table, choice, field, items};

const STATUSES: [&str; 9] =
    ["pending", "uploaded", "scattering", "scattered", "gathering", "gathered", "diagnosing", "completed", "failed"];

#[derive(Deserialize)]
pub struct Parameters {
    vin: Option<String>,
    vehicle_id: Option<String>,
    firmware: Option<String>,
    platform: Option<String>,
    /// `NAME=VALUE`.
    label: Option<String>,
    since: Option<String>,
    until: Option<String>,
    status: Option<String>,
    cursor: Option<String>,
}

/// `/batches`.
pub async fn page(State(api): State<Api>, Query(parameters): Query<Parameters>) -> Result<Html<String>, PageError> {
    let Parameters { vin, vehicle_id, firmware, platform, label, since, until, status, cursor } = &parameters;
    let shown = [
        ("vin", vin.as_deref()),
        ("vehicle_id", vehicle_id.as_deref()),
        ("firmware", firmware.as_deref()),
        ("platform", platform.as_deref()),
        ("label", label.as_deref()),
        ("since", since.as_deref()),
        ("until", until.as_deref()),
        ("status", status.as_deref()),
    ];
    // The API has a parameter for each label.
    let (label_name, label_value) = label.as_deref().map_or(("", None), |label| match label.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (label, None),
    });
    let label_name = format!("label.{label_name}");
    let filters = shown.map(|(name, value)| if name == "label" { (&*label_name, label_value) } else { (name, value) });
    let paged = [&filters[..], &[("cursor", cursor.as_deref())]].concat();
    let answer = api.get("/batches", &paged).await?;
    let next = answer["next_cursor"].as_str();
    let body = html! {
        h1 { "Batches" }
        form.filters action="/batches" {
            (field("vin", "VIN", vin.as_deref()))
            (field("vehicle_id", "Vehicle", vehicle_id.as_deref()))
            (field("firmware", "Firmware", firmware.as_deref()))
            (field("platform", "Platform", platform.as_deref()))
            (field("label", "Label (name=value)", label.as_deref()))
            (field("since", "Since", since.as_deref()))
            (field("until", "Until", until.as_deref()))
            (choice("status", "Status", &STATUSES, status.as_deref()))
            button { "Search" }
        }
        div id="batches" { (batches_table(items(&answer, "batches"))) }
        @if next.is_some() {
            p { a rel="next" href=(with_parameters("/batches", &[&shown[..], &[("cursor", next)]].concat())) { "Older batches" } }
        }
    };
    // Older pages do not change when batches arrive.
    let follows = cursor.is_none().then_some(Follows { events: "/api/v1/events", every_ms: 1000, is_old: false });
    Ok(whole_page("Batches", Section::Batches, follows, &body))
}
