//! What stands out in a batch, what users say of it, and where codes occur.

use std::sync::Arc;

use argus_dataflow::{FleetGroup, Totals};
use argus_query::cache::Found;
use argus_sinks::{FleetView, Snapshot};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use chrono::{DateTime, Timelike, Utc};
use metrics::counter;
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::answers::answer::Answer;
use crate::answers::diagnosis::{Diagnosed, Diagnoses, Diagnosis, DiagnosisError};
use crate::app::Service;
use crate::assistant::Assistant;
use crate::catalog::{self, Description};
use crate::domain::case::{Case, Feedback, Verdict};
use crate::domain::explanation::{Explanation, ExplanationSource, ExplanationState};
use crate::domain::mask::masked;
use crate::http::cached::respond;
use crate::http::error_responses::{Conflict, Invalid, NotFound, TooManyRequests, Unavailable};
use crate::http::extract;
use crate::http::extract::{JsonBody, Segments};
use crate::http::problem::{Problem, batch_id};
use crate::metadata::{Document, DocumentKind, Metadata};
use crate::pipeline::Pipeline;

#[derive(Clone)]
struct DiagnosisContext {
    diagnoses: Diagnoses,
    assistant: Option<Assistant>,
    pipeline: Pipeline,
    metadata: Metadata,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// `/batches/{id}/diagnosis` and `/codes/{code}`.
pub fn router(service: &Service) -> OpenApiRouter {
    let context = DiagnosisContext {
        diagnoses: service.diagnoses.clone(),
        assistant: service.assistant.clone(),
        pipeline: service.pipeline.clone(),
        metadata: service.metadata.clone(),
        snapshots: service.snapshots.clone(),
    };
    OpenApiRouter::new()
        .routes(routes!(diagnosis, diagnose_again))
        .routes(routes!(feedback, take_back))
        .routes(routes!(code))
        .with_state(context)
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
        (status = 200, description = "the findings, those that say most first, with similar cases and what a language model wrote", body = DiagnosisBody),
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
    counter!("argus_computed_total", "kind" => "diagnosis").increment(1);
    // Not cached: it comes from the counts in memory, and changes with other batches, cases and the catalogue.
    let Diagnosed { mut diagnosis, facts, epoch } = context.diagnoses.of(id).await?;
    if let Some(assistant) = &context.assistant {
        let of = diagnosis.fingerprint(&facts);
        let waiting = |state| Explanation::new(state, ExplanationSource::Model, &of, Utc::now());
        let written = assistant.of(id).map(|live| live.explanation);
        if assistant.is_queued(id) {
            diagnosis.explanation = Some(waiting(ExplanationState::Queued));
        } else if let Some(written) = written.filter(|written| written.state == ExplanationState::Writing) {
            diagnosis.explanation = Some(written);
        } else if !diagnosis.findings.is_empty() && diagnosis.explanation.as_ref().is_some_and(Explanation::is_to_renew)
        {
            // What is read is renewed. A full queue is counted, and the next read asks again.
            let _ = assistant.ask(id);
        }
    }
    Ok(respond(&Answer::at_epoch(&diagnosis, epoch)?, Found::Bypass, &headers))
}

impl From<DiagnosisError> for Problem {
    fn from(error: DiagnosisError) -> Problem {
        match error {
            DiagnosisError::NotGathered(_) => Problem::new(StatusCode::NOT_FOUND, "no-diagnosis", error.to_string()),
            DiagnosisError::Answer(error) => error.into(),
        }
    }
}

/// A request for an explanation was taken.
#[derive(Serialize, ToSchema)]
struct AskedBody {
    batch_id: Uuid,
    /// It waits for the language model.
    state: ExplanationState,
}

/// Asks the language model to explain a batch's findings again.
///
/// Completed batches with findings are explained without this. `diagnosis` events tell what is written.
#[utoipa::path(
    post,
    path = "/api/v1/batches/{id}/diagnosis",
    tag = "reports",
    params(("id" = Uuid, Path, description = "the batch")),
    responses(
        (status = 202, description = "it waits for the model", body = AskedBody),
        NotFound, Conflict, TooManyRequests, Unavailable,
    ),
)]
async fn diagnose_again(
    State(context): State<DiagnosisContext>,
    Segments(id): Segments<String>,
) -> Result<(StatusCode, Json<AskedBody>), Problem> {
    let id = batch_id(&id)?;
    let Diagnosed { diagnosis, .. } = context.diagnoses.of(id).await?;
    let assistant = context.assistant.as_ref().ok_or_else(|| {
        let detail = "no language model is configured, and the findings are always current; start with --llm-url and \
                      --llm-model";
        Problem::new(StatusCode::CONFLICT, "no-model", detail)
    })?;
    if diagnosis.findings.is_empty() {
        let detail = "nothing stands out in this batch, so there is nothing to explain";
        return Err(Problem::new(StatusCode::CONFLICT, "no-findings", detail));
    }
    assistant.ask(id).map_err(|full| Problem::new(StatusCode::TOO_MANY_REQUESTS, "busy", full.to_string()))?;
    Ok((StatusCode::ACCEPTED, Json(AskedBody { batch_id: id, state: ExplanationState::Queued })))
}

/// A case, as a user's feedback made it.
#[derive(Serialize, ToSchema)]
struct CaseBody {
    batch_id: Uuid,
    #[serde(flatten)]
    case: Case,
}

/// Says whether a diagnosis is right.
///
/// The batch becomes a case: diagnoses of batches with the same codes show it. The cause of a diagnosis that is right is the
/// one that is given, else the one of its explanation, else the one that the catalogue has for its first finding.
#[utoipa::path(
    post,
    path = "/api/v1/batches/{id}/diagnosis/feedback",
    tag = "reports",
    params(("id" = Uuid, Path, description = "the batch")),
    request_body = Feedback,
    responses(
        (status = 201, description = "a new case", body = CaseBody),
        (status = 200, description = "it replaces what was said before", body = CaseBody),
        NotFound, Conflict, Invalid, Unavailable,
    ),
)]
async fn feedback(
    State(context): State<DiagnosisContext>,
    Segments(id): Segments<String>,
    JsonBody(feedback): JsonBody<Feedback>,
) -> Result<(StatusCode, Json<CaseBody>), Problem> {
    let id = batch_id(&id)?;
    feedback.check().map_err(Problem::invalid)?;
    let Diagnosed { diagnosis, facts, .. } = context.diagnoses.of(id).await?;
    let given = feedback.cause.map(|cause| cause.trim().to_owned()).filter(|cause| !cause.is_empty());
    let cause = match feedback.verdict {
        Verdict::Right => given.or_else(|| cause_of(&diagnosis)),
        Verdict::Wrong | Verdict::Corrected => given,
    };
    // Cases are shown beside other vehicles, and to a language model.
    let masked = |text: String| masked(&text, &facts.vin, &facts.vehicle_id).into_owned();
    let case = Case {
        verdict: feedback.verdict,
        cause: cause.map(masked),
        note: feedback.note.map(masked),
        platform: facts.platform.clone(),
        firmware: facts.firmware.clone(),
        codes: diagnosis.codes(),
        lines: diagnosis.lines(&facts),
        at: Utc::now().with_nanosecond(0).unwrap_or_else(Utc::now),
    };
    let document = Document::new(DocumentKind::Case, id.to_string(), &case)?;
    context.pipeline.put_documents(vec![document], None).await?;
    let status = if diagnosis.feedback.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(CaseBody { batch_id: id, case })))
}

/// Takes back what was said of a diagnosis.
#[utoipa::path(
    delete,
    path = "/api/v1/batches/{id}/diagnosis/feedback",
    tag = "reports",
    params(("id" = Uuid, Path, description = "the batch")),
    responses((status = 204, description = "the batch is no case any more"), NotFound, Unavailable),
)]
async fn take_back(
    State(context): State<DiagnosisContext>,
    Segments(id): Segments<String>,
) -> Result<StatusCode, Problem> {
    let id = batch_id(&id)?;
    match context.pipeline.delete_document(DocumentKind::Case, id.to_string()).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => {
            let detail = "nothing was said of this batch's diagnosis";
            Err(Problem::new(StatusCode::NOT_FOUND, "no-feedback", detail))
        }
    }
}

/// The cause that a diagnosis names.
fn cause_of(diagnosis: &Diagnosis) -> Option<String> {
    let explained = diagnosis.explanation.as_ref().filter(|explanation| !explanation.outdated);
    let explained = explained.and_then(|explanation| explanation.likely_cause.as_ref()).map(|cause| cause.text.clone());
    let known = || diagnosis.findings.first()?.catalog.as_ref()?.cause.clone();
    explained.or_else(known)
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

impl extract::Body for Feedback {}
