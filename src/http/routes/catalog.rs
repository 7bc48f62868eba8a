//! What is known of codes: search, and users' own entries.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Service;
use crate::catalog::{Description, Words, describe, listed};
use crate::domain::catalog::CatalogEntry;
use crate::http::error_responses::{Conflict, Invalid, NotFound, TooLong, Unavailable};
use crate::http::extract;
use crate::http::extract::{JsonBody, Parameters, Segments};
use crate::http::list::{List, limit_within};
use crate::http::problem::Problem;
use crate::metadata::Metadata;
use crate::pipeline::Pipeline;

const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 1000;

/// Entries of one request.
const ENTRIES_MAX: usize = 1000;

/// The columns of the catalogue as CSV.
const COLUMNS: [&str; 8] = ["code", "platform", "firmware", "severity", "meaning", "cause", "remedy", "source"];

#[derive(Clone)]
struct CatalogContext {
    metadata: Metadata,
    pipeline: Pipeline,
}

/// `/catalog`.
pub fn router(service: &Service) -> OpenApiRouter {
    let context = CatalogContext { metadata: service.metadata.clone(), pipeline: service.pipeline.clone() };
    OpenApiRouter::new().routes(routes!(search, put_several)).routes(routes!(put, delete)).with_state(context)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SearchParameters {
    /// Words that an entry must have, in any field.
    q: Option<String>,
    /// The maximum number of entries, 1 to 1000; default 100.
    limit: Option<u32>,
}

/// The entries that were found.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct SearchBody {
    entries: Vec<Description>,
    next_cursor: Option<String>,
}

/// Searches what is known of codes.
///
/// Users' entries come first. Codes that are put together from parts, such as trouble codes and HRESULTs, are found by their
/// whole name.
#[utoipa::path(
    get,
    path = "/api/v1/catalog",
    tag = "fleet",
    params(SearchParameters),
    responses(
        (status = 200, description = "the entries", content((SearchBody = "application/json"), (String = "text/csv"))),
        Invalid, Unavailable,
    ),
)]
async fn search(
    State(context): State<CatalogContext>,
    Parameters(parameters): Parameters<SearchParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let limit = limit_within(parameters.limit, LIMIT_DEFAULT, LIMIT_MAX)? as usize;
    let text = parameters.q.unwrap_or_default();
    let words = Words::of(&text);
    let own = context.metadata.catalog(limit, |entry| words.are_in(&entry.clone().into())).await?;
    let mut found: Vec<Description> = own.into_iter().map(Description::from).collect();
    found.extend(describe(text.trim()));
    found.extend(listed().into_iter().filter(|known| known.code != text.trim() && words.are_in(known)));
    found.truncate(limit);
    List::new("entries", &COLUMNS, found, None)?.respond(&headers)
}

/// Adds what a user knows of a code, or replaces it.
///
/// The entry holds everywhere, or on the platform and with the firmware that it names; the one that fits a batch best is shown
/// with its codes, before the built-in one.
#[utoipa::path(
    put,
    path = "/api/v1/catalog/{code}",
    tag = "fleet",
    params(("code" = String, Path, description = "the code")),
    request_body = CatalogEntry,
    responses(
        (status = 201, description = "a new entry", body = CatalogEntry),
        (status = 200, description = "it replaces the entry of the same code, platform and firmware", body = CatalogEntry),
        Invalid, Conflict, TooLong, Unavailable,
    ),
)]
async fn put(
    State(context): State<CatalogContext>,
    Segments(code): Segments<String>,
    JsonBody(entry): JsonBody<CatalogEntry>,
) -> Result<(StatusCode, Json<CatalogEntry>), Problem> {
    if !entry.code.is_empty() && entry.code != code {
        let detail = format!("the entry is of {:?} and the path of {code:?}; leave the code out", entry.code);
        return Err(Problem::invalid(detail));
    }
    let entry = CatalogEntry { code, ..entry };
    entry.check().map_err(|invalid| Problem::invalid(invalid.to_string()))?;
    let new = context.pipeline.put_catalog(vec![entry.clone()]).await?;
    Ok((if new == 0 { StatusCode::OK } else { StatusCode::CREATED }, Json(entry)))
}

/// What became of several entries.
#[derive(Serialize, ToSchema)]
struct PutBody {
    /// Entries that are new.
    created: u64,
    /// Entries that were replaced.
    replaced: u64,
}

/// Adds or replaces several entries: all, or none.
#[utoipa::path(
    post,
    path = "/api/v1/catalog",
    tag = "fleet",
    request_body = Vec<CatalogEntry>,
    responses((status = 200, description = "they are there", body = PutBody), Invalid, Conflict, TooLong, Unavailable),
)]
async fn put_several(
    State(context): State<CatalogContext>,
    JsonBody(entries): JsonBody<Vec<CatalogEntry>>,
) -> Result<Json<PutBody>, Problem> {
    if entries.len() > ENTRIES_MAX {
        return Err(Problem::invalid(format!("a request may have at most {ENTRIES_MAX} entries; send several")));
    }
    CatalogEntry::check_all(&entries).map_err(Problem::invalid)?;
    let all = entries.len() as u64;
    let created = context.pipeline.put_catalog(entries).await?;
    Ok(Json(PutBody { created, replaced: all.saturating_sub(created) }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DeleteParameters {
    /// The platform of the entry, if it names one.
    platform: Option<String>,
    /// The firmware of the entry, if it names one.
    firmware: Option<String>,
}

/// Deletes a user's entry.
#[utoipa::path(
    delete,
    path = "/api/v1/catalog/{code}",
    tag = "fleet",
    params(("code" = String, Path, description = "the code"), DeleteParameters),
    responses((status = 204, description = "deleted"), NotFound, Invalid, Unavailable),
)]
async fn delete(
    State(context): State<CatalogContext>,
    Segments(code): Segments<String>,
    Parameters(parameters): Parameters<DeleteParameters>,
) -> Result<StatusCode, Problem> {
    let (platform, firmware) = (parameters.platform.unwrap_or_default(), parameters.firmware.unwrap_or_default());
    context.pipeline.delete_catalog(code, platform, firmware).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl extract::Body for CatalogEntry {}

impl extract::Body for Vec<CatalogEntry> {
    const IS_OBJECT: bool = false;
}
