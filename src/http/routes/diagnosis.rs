//! What stands out in a batch, and where codes occur.

use std::sync::Arc;

use argus_dataflow::{FleetGroup, Totals};
use argus_query::cache::Found;
use argus_query::{BatchFacts, Report, findings};
use argus_sinks::{FleetView, Snapshot};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use chrono::{DateTime, Utc};
use metrics::counter;
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::answers::answer::Answer;
use crate::answers::diagnosis::Diagnosis;
use crate::answers::reports::Reports;
use crate::app::Service;
use crate::catalog::{self, Description};
use crate::http::cached::respond;
use crate::http::error_responses::{Invalid, NotFound, Unavailable};
use crate::http::extract::Segments;
use crate::http::problem::{Problem, batch_id};
use crate::metadata::Metadata;

#[derive(Clone)]
struct DiagnosisContext {
    reports: Reports,
    metadata: Metadata,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// `/batches/{id}/diagnosis` and `/codes/{code}`.
pub fn router(service: &Service) -> OpenApiRouter {
    let context = DiagnosisContext {
        reports: service.reports.clone(),
        metadata: service.metadata.clone(),
        snapshots: service.snapshots.clone(),
    };
    OpenApiRouter::new().routes(routes!(diagnosis)).routes(routes!(code)).with_state(context)
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
/// Each finding has its evidence: the comparison with other vehicles, with the firmware before and with the vehicle's past,
/// its numbers, its test, and the first line with the code. There is a diagnosis once the batch is
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
    counter!("argus_computed_total", "kind" => "diagnosis").increment(1);
    // Not cached: it comes from the counts in memory, and changes with other batches and with the catalogue.
    let (mut diagnosis, place) = diagnose(id, &report, fleet(&snapshot)?)?;
    for explained in diagnosis.listed() {
        let code = &explained.finding.code;
        let entries = context.metadata.catalog_of(code).await?;
        explained.catalog = catalog::best(code, entries, place.platform.as_deref(), place.firmware.as_deref());
    }
    Ok(respond(&Answer::at_epoch(&diagnosis, snapshot.epoch)?, Found::Bypass, &headers))
}

/// The diagnosis, and the batch's platform and firmware.
fn diagnose(id: Uuid, report: &Answer, view: &FleetView) -> Result<(Diagnosis, BatchFacts), Problem> {
    let report: Report = serde_json::from_slice(report.body()).map_err(|error| Problem::internal(&error))?;
    match &report.batch {
        Some(facts) if report.is_final => Ok((Diagnosis::of_batch(id, findings(&report, facts, view)), facts.clone())),
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
    let description = catalog::best(&code, context.metadata.catalog_of(&code).await?, None, None);
    if description.is_none() && firmwares.is_empty() {
        let detail = format!("no line has the code {code:?}, and the catalogue does not know it");
        return Err(Problem::new(StatusCode::NOT_FOUND, "code-not-found", detail));
    }
    Ok(axum::Json(CodeBody { code, description, firmwares, platforms, components, epoch: snapshot.epoch }))
}
