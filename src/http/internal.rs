//! The door for the other processes of the cluster: those that follow, and the requests that they pass on.

use std::convert::Infallible;
use std::net::IpAddr;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::service::Service;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::cluster::follower::{ALIVE_PATH, FOLLOW_PATH, KEY_HEADER, UPLOADS_PATH};
use crate::cluster::frame::{Alive, Hello};
use crate::cluster::intake::IntakeError;
use crate::cluster::leader::{Leader, NotOneCluster};
use crate::cluster::{ClusterKey, ClusterKeys};
use crate::http::connections::Entrance;
use crate::http::fast_path::FastPath;
use crate::http::forward::{POSITION_HEADER, peer_of};
use crate::http::problem::Problem;
use crate::http::routes::files::accept_and_answer;

/// What a process says of itself has at most this many bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

/// Serves the other processes.
#[derive(Clone)]
pub struct InternalEntrance {
    keys: ClusterKeys,
    /// `None` in a process that follows itself.
    leader: Option<Leader>,
    public: FastPath,
}

impl InternalEntrance {
    /// Serves those who have the keys, as `public` does, and lets them follow a leader.
    pub fn new(keys: ClusterKeys, leader: Option<Leader>, public: FastPath) -> InternalEntrance {
        InternalEntrance { keys, leader, public }
    }
}

impl Entrance for InternalEntrance {
    fn of_peer(&self, _: IpAddr) -> InternalEntrance {
        self.clone()
    }
}

impl Service<Request<Incoming>> for InternalEntrance {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let key = request.headers_mut().remove(KEY_HEADER);
        let has = |key_of: &ClusterKey| key.as_ref().is_some_and(|key| key_of.is(key.as_bytes()));
        let (is_process, is_forwarded) = (has(&self.keys.processes), has(&self.keys.forwarded));
        let Some(leader) = self.leader.clone() else {
            let detail = "this process does not lead; ask another one";
            return answer(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-leader", detail));
        };
        if !is_process && !is_forwarded {
            let detail = "this address is for the processes of the cluster; they must have the same metadata database";
            return answer(Problem::new(StatusCode::UNAUTHORIZED, "no-cluster-key", detail));
        }
        if is_forwarded {
            let public = self.public.of_forwarded(peer_of(request.headers()));
            let answered = public.call(request);
            return async move { Ok(with_position(answered.await?, &leader)) }.boxed();
        }
        match (request.method(), request.uri().path()) {
            (&Method::POST, FOLLOW_PATH) => async move {
                let hello: Hello = match read(request).await {
                    Ok(hello) => hello,
                    Err(problem) => return Ok(problem.into_response()),
                };
                let admitted = leader.admit(&hello);
                let connection = match admitted {
                    Ok(connection) => connection,
                    Err(refusal) => {
                        let kind = match refusal {
                            NotOneCluster::Differs { .. } | NotOneCluster::NoSuchNumber { .. } => "not-one-cluster",
                            NotOneCluster::SameNumber(_) => "same-process-number",
                        };
                        return Ok(Problem::new(StatusCode::CONFLICT, kind, refusal.to_string()).into_response());
                    }
                };
                Ok(Body::from_stream(leader.frames(&hello, connection)).into_response())
            }
            .boxed(),
            (&Method::POST, UPLOADS_PATH) => async move {
                let body = Body::new(request.into_body()).into_data_stream();
                let answered = async {
                    let (stored, claim, key) = leader.take(body).await?;
                    accept_and_answer(&leader.intake().pipeline, stored, claim, key).await
                };
                Ok(with_position(answered.await.unwrap_or_else(IntoResponse::into_response), &leader))
            }
            .boxed(),
            (&Method::POST, ALIVE_PATH) => async move {
                let is_known = match read::<Alive>(request).await {
                    Ok(alive) => leader.alive(&alive),
                    Err(problem) => return Ok(problem.into_response()),
                };
                Ok(Json(json!({ "follows": is_known })).into_response())
            }
            .boxed(),
            _ => {
                let detail = format!("there is no internal resource at {}", request.uri().path().escape_default());
                answer(Problem::new(StatusCode::NOT_FOUND, "no-such-path", detail))
            }
        }
    }
}

/// A response with the position of the leader. It is read after the answer: it has what the answer tells of.
fn with_position(mut response: Response, leader: &Leader) -> Response {
    if let Ok(position) = serde_json::to_string(&leader.position())
        && let Ok(position) = position.parse()
    {
        response.headers_mut().insert(POSITION_HEADER, position);
    }
    response
}

impl From<IntakeError> for Problem {
    fn from(error: IntakeError) -> Problem {
        match error {
            IntakeError::Stopping => Problem::busy(error.to_string()),
            // The process that sent it has checked it: it is of another version, or the connection was lost.
            error => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "an upload was not taken from another process"
                );
                Problem::busy(format!("the upload was not taken: {error}; send it again"))
            }
        }
    }
}

fn answer(problem: Problem) -> BoxFuture<'static, Result<Response, Infallible>> {
    std::future::ready(Ok(problem.into_response())).boxed()
}

async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Problem> {
    let body = to_bytes(Body::new(request.into_body()), BODY_BYTES_MAX).await;
    let body = body.map_err(|error| Problem::invalid(format!("the body cannot be read: {error}")))?;
    serde_json::from_slice(&body)
        .map_err(|error| Problem::invalid(format!("the body is not what a process says: {error}")))
}
