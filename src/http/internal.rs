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

use crate::cluster::ClusterKey;
use crate::cluster::follower::{ALIVE_PATH, FOLLOW_PATH, KEY_HEADER};
use crate::cluster::frame::{Alive, Hello};
use crate::cluster::leader::{Leader, NotOneCluster};
use crate::http::connections::Entrance;
use crate::http::fast_path::FastPath;
use crate::http::forward::{POSITION_HEADER, peer_of};
use crate::http::problem::Problem;

/// What a process says of itself has at most this many bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

/// Serves the other processes.
#[derive(Clone)]
pub struct InternalEntrance {
    key: ClusterKey,
    /// `None` in a process that follows itself.
    leader: Option<Leader>,
    public: FastPath,
}

impl InternalEntrance {
    /// Serves those who have the key, as `public` does, and lets them follow a leader.
    pub fn new(key: ClusterKey, leader: Option<Leader>, public: FastPath) -> InternalEntrance {
        InternalEntrance { key, leader, public }
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

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let has_key = request.headers().get(KEY_HEADER).is_some_and(|key| self.key.is(key.as_bytes()));
        let Some(leader) = self.leader.clone() else {
            let detail = "this process does not lead; ask another one";
            return answer(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-leader", detail));
        };
        if !has_key {
            let detail = "this address is for the processes of the cluster; they must have the same metadata database";
            return answer(Problem::new(StatusCode::UNAUTHORIZED, "no-cluster-key", detail));
        }
        match (request.method(), request.uri().path()) {
            (&Method::POST, FOLLOW_PATH) => async move {
                let hello: Hello = match read(request).await {
                    Ok(hello) => hello,
                    Err(problem) => return Ok(problem.into_response()),
                };
                if let Err(refusal) = leader.admit(&hello) {
                    let kind = match refusal {
                        NotOneCluster::Differs { .. } => "not-one-cluster",
                        NotOneCluster::SameNumber(_) => "same-process-number",
                    };
                    return Ok(Problem::new(StatusCode::CONFLICT, kind, refusal.to_string()).into_response());
                }
                Ok(Body::from_stream(leader.frames(&hello)).into_response())
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
                let public = self.public.of_forwarded(peer_of(request.headers()));
                let answered = public.call(request);
                async move {
                    let mut response = answered.await?;
                    // After the answer: it has what the answer tells of.
                    if let Ok(position) = serde_json::to_string(&leader.position())
                        && let Ok(position) = position.parse()
                    {
                        response.headers_mut().insert(POSITION_HEADER, position);
                    }
                    Ok(response)
                }
                .boxed()
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
