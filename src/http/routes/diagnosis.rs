//! What stands out in a batch, and what is known of codes.

use std::sync::Arc;

use argus_dataflow::{FleetGroup, Totals};
use argus_query::{Report, findings};
use argus_sinks::{FleetView, Snapshot};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use chrono::{DateTime, Utc};
use metrics::counter;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::answers::answer::Answer;
use crate::answers::diagnosis::Diagnosis;
use crate::answers::reports::Reports;
use crate::app::Service;
use crate::catalog::{self, Description};
use crate::http::cached::{CachedAnswers, respond};
use crate::http::error_responses::{Invalid, NotFound, Unavailable};
use crate::http::extract::{Parameters, Segments};
use crate::http::list::{List, limit_within};
use crate::http::problem::{Problem, batch_id};

const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 1000;

/// The columns of the catalogue as CSV.
const COLUMNS: [&str; 5] = ["code", "meaning", "cause", "remedy", "source"];

#[derive(Clone)]
struct DiagnosisContext {
    reports: Reports,
    answers: CachedAnswers,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// `/batches/{id}/diagnosis`, `/codes/{code}` and `/catalog`.
pub fn router(service: &Service, answers: CachedAnswers) -> OpenApiRouter {
    let context = DiagnosisContext { reports: service.reports.clone(), answers, snapshots: service.snapshots.clone() };
    OpenApiRouter::new().routes(routes!(diagnosis)).routes(routes!(code)).routes(routes!(entries)).with_state(context)
}

/// A diagnosis at an epoch.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct DiagnosisBody {
    /// The epoch of the counts.
    epoch: u64,
    #[schema(inline)]
    diagnosis: Diagnosis,
}

/// What stands out in a batch.
///
/// Each finding has its evidence: the comparison with other vehicles, with the firmware before, with the vehicle's past and
/// with random times, its numbers, its test, and the first line with the code. There is a diagnosis once the batch is
/// gathered; it follows the counts, also those of other batches.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/diagnosis",
    tag = "reports",
    params(
        ("id" = Uuid, Path, description = "the batch"),
        ("If-None-Match" = Option<String>, Header, description = "the ETag of the client's copy"),
    ),
    responses(
        (status = 200, description = "the findings, those that say most first", body = DiagnosisBody),
        (status = 304, description = "the client's copy is current"),
        NotFound, Invalid, Unavailable,
    ),
)]
async fn diagnosis(
    State(context): State<DiagnosisContext>,
    Segments(id): Segments<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = batch_id(&id)?;
    // The report first: the counts of the fleet are at least as new.
    let (report, _) = context.reports.present(id, None).await?;
    let snapshot = Arc::clone(&context.snapshots.borrow());
    let epoch = snapshot.epoch;
    let compute = || async move {
        counter!("argus_computed_total", "kind" => "diagnosis").increment(1);
        Ok(json!(diagnose(id, &report, fleet(&snapshot)?)?))
    };
    let (answer, found) = context.answers.get(format!("diagnosis {id}"), epoch, epoch, compute).await?;
    Ok(respond(&answer, found, &headers))
}

fn diagnose(id: Uuid, report: &Answer, view: &FleetView) -> Result<Diagnosis, Problem> {
    let report: Report = serde_json::from_slice(report.body()).map_err(|error| Problem::internal(&error))?;
    match &report.batch {
        Some(facts) if report.is_final => Ok(Diagnosis::of_batch(id, findings(&report, facts, view))),
        facts => {
            let status = facts.as_ref().map_or("", |facts| facts.status.as_str());
            let detail = format!("there is no diagnosis yet: the batch is {status}; complete it (POST …/complete)");
            Err(Problem::new(StatusCode::NOT_FOUND, "no-diagnosis", detail))
        }
    }
}

fn fleet(snapshot: &Snapshot) -> Result<&FleetView, Problem> {
    snapshot.fleet.as_ref().ok_or_else(|| Problem::busy("the server is starting; retry later"))
}

/// A code: what it means, where it occurs and since when.
#[derive(Serialize, ToSchema)]
struct CodeBody {
    /// The code.
    code: String,
    /// What it means; null if it is not in the catalogue.
    description: Option<Description>,
    /// Where it occurs, by firmware.
    firmwares: Vec<Place>,
    /// Where it occurs, by hardware platform.
    platforms: Vec<Place>,
    /// Where it occurs, by component.
    components: Vec<Place>,
    /// The epoch of the counts.
    epoch: u64,
}

/// The occurrences of a code in a group.
#[derive(Serialize, ToSchema)]
struct Place {
    /// The group's name; null if it has none.
    name: Option<String>,
    /// Occurrences.
    count: u64,
    /// Distinct batches.
    batches: u64,
    /// Distinct vehicles.
    vehicles: u64,
    /// The earliest plausible timestamp of a line with the code.
    first_seen: Option<DateTime<Utc>>,
    /// The latest plausible timestamp of a line with the code.
    last_seen: Option<DateTime<Utc>>,
}

impl Place {
    fn new(name: Option<String>, totals: &Totals) -> Place {
        let time = |micros: Option<i64>| micros.and_then(DateTime::from_timestamp_micros);
        Place {
            name,
            count: totals.count,
            batches: totals.batches,
            vehicles: totals.vehicles,
            first_seen: time(totals.seen.first),
            last_seen: time(totals.seen.last),
        }
    }
}

/// What a code means, and where it occurs.
#[utoipa::path(
    get,
    path = "/api/v1/codes/{code}",
    tag = "fleet",
    params(("code" = String, Path, description = "the code")),
    responses((status = 200, description = "the code", body = CodeBody), NotFound, Invalid, Unavailable),
)]
async fn code(
    State(context): State<DiagnosisContext>,
    Segments(code): Segments<String>,
) -> Result<axum::Json<CodeBody>, Problem> {
    let snapshot = Arc::clone(&context.snapshots.borrow());
    let view = fleet(&snapshot)?;
    let places = |first: FleetGroup, name: fn(&FleetGroup) -> Option<&Option<String>>| -> Vec<Place> {
        let of_kind = view.from(first).map_while(|(group, of, totals)| Some((name(group)?, of, totals)));
        of_kind
            .filter(|(_, of, _)| *of == Some(code.as_str()))
            .map(|(name, _, totals)| Place::new(name.clone(), &totals))
            .collect()
    };
    let firmwares = places(FleetGroup::Firmware(None), |group| match group {
        FleetGroup::Firmware(name) => Some(name),
        _ => None,
    });
    let platforms = places(FleetGroup::Platform(None), |group| match group {
        FleetGroup::Platform(name) => Some(name),
        _ => None,
    });
    let components = places(FleetGroup::Component(None), |group| match group {
        FleetGroup::Component(name) => Some(name),
        _ => None,
    });
    let description = catalog::describe(&code);
    if description.is_none() && firmwares.is_empty() {
        let detail = format!("no line has the code {code:?}, and the catalogue does not know it");
        return Err(Problem::new(StatusCode::NOT_FOUND, "code-not-found", detail));
    }
    Ok(axum::Json(CodeBody { code, description, firmwares, platforms, components, epoch: snapshot.epoch }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EntriesParameters {
    /// Words that an entry must have, in any field.
    q: Option<String>,
    /// The maximum number of entries, 1 to 1000; default 100.
    limit: Option<u32>,
}

/// The entries that were found.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct EntriesBody {
    entries: Vec<Description>,
    next_cursor: Option<String>,
}

/// Searches what is known of codes.
///
/// Codes that are put together from parts, such as trouble codes and HRESULTs, are found by their whole name.
#[utoipa::path(
    get,
    path = "/api/v1/catalog",
    tag = "fleet",
    params(EntriesParameters),
    responses(
        (status = 200, description = "the entries, by code", content((EntriesBody = "application/json"), (String = "text/csv"))),
        Invalid,
    ),
)]
async fn entries(
    Parameters(parameters): Parameters<EntriesParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let limit = limit_within(parameters.limit, LIMIT_DEFAULT, LIMIT_MAX)? as usize;
    let words = parameters.q.unwrap_or_default();
    let found = match catalog::describe(words.trim()) {
        Some(exact) => vec![exact],
        None => catalog::search(&words).into_iter().take(limit).collect(),
    };
    List::new("entries", &COLUMNS, found, None)?.respond(&headers)
}
