//! API tokens: creating, listing and revoking them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::access::token::{NewToken, Token};
use crate::access::{Access, TokenError};
use crate::app::Service;
use crate::http::error_responses::{Conflict, Invalid, NotFound, Unavailable};
use crate::http::extract;
use crate::http::extract::{JsonBody, Segments};
use crate::http::problem::Problem;

/// `/tokens`.
pub fn router(service: &Service) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(create, list)).routes(routes!(revoke)).with_state(service.access.clone())
}

/// A new token.
#[derive(Serialize, ToSchema)]
struct CreatedBody {
    /// Its text: it is shown only here.
    secret: String,
    #[serde(flatten)]
    #[schema(inline)]
    token: Token,
}

/// All tokens.
#[derive(Serialize, ToSchema)]
struct TokensBody {
    /// The newest first.
    tokens: Vec<Token>,
}

/// Creates a token.
///
/// From the first one on, every request needs a token; the first one must have the scope `admin`.
#[utoipa::path(
    post,
    path = "/api/v1/tokens",
    tag = "server",
    request_body = NewToken,
    responses((status = 201, description = "the token, with its text", body = CreatedBody), Conflict, Invalid, Unavailable),
)]
async fn create(
    State(access): State<Access>,
    JsonBody(described): JsonBody<NewToken>,
) -> Result<(StatusCode, Json<CreatedBody>), Problem> {
    let (token, secret) = access.create(described).await?;
    Ok((StatusCode::CREATED, Json(CreatedBody { secret, token })))
}

/// Lists the tokens, without their texts.
#[utoipa::path(
    get,
    path = "/api/v1/tokens",
    tag = "server",
    responses((status = 200, description = "all tokens, also expired and revoked ones", body = TokensBody)),
)]
async fn list(State(access): State<Access>) -> Json<TokensBody> {
    Json(TokensBody { tokens: access.list() })
}

/// Revokes a token.
#[utoipa::path(
    delete,
    path = "/api/v1/tokens/{id}",
    tag = "server",
    params(("id" = Uuid, Path, description = "the token's id")),
    responses((status = 204, description = "it cannot be used any more"), NotFound, Unavailable),
)]
async fn revoke(State(access): State<Access>, Segments(id): Segments<String>) -> Result<StatusCode, Problem> {
    let unknown =
        || Problem::new(StatusCode::NOT_FOUND, "no-such-token", format!("there is no token {}", id.escape_default()));
    access.revoke(Uuid::parse_str(&id).map_err(|_| unknown())?).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Problem {
        match error {
            TokenError::Invalid(detail) => Problem::invalid(detail),
            TokenError::FirstNeedsAdmin => Problem::new(StatusCode::CONFLICT, "first-token", error.to_string()),
            TokenError::Unknown(_) => Problem::new(StatusCode::NOT_FOUND, "no-such-token", error.to_string()),
            TokenError::Pipeline(error) => error.into(),
            TokenError::Metadata(error) => error.into(),
        }
    }
}

impl extract::Body for NewToken {}
