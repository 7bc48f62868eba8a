//! The OpenAPI document: what the modules of the routes do not say themselves.

use axum::http::Method;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, ContentBuilder, OpenApi, Ref, Response, ResponseBuilder};

use crate::access::rules::{Needs, needs};

/// The name of the scheme.
const SCHEME: &str = "token";

/// Adds to each operation that it needs a token, and how it is refused without one.
pub fn describe_access(document: &mut OpenApi) {
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("argus_…")
        .description(Some("From the first token on, every request needs one; without tokens, the server is open."));
    let components = document.components.get_or_insert_with(Components::new);
    components.add_security_scheme(SCHEME, SecurityScheme::Http(scheme.build()));
    for (path, item) in &mut document.paths.paths {
        let operations = [
            (Method::GET, &mut item.get),
            (Method::PUT, &mut item.put),
            (Method::POST, &mut item.post),
            (Method::DELETE, &mut item.delete),
            (Method::OPTIONS, &mut item.options),
            (Method::HEAD, &mut item.head),
            (Method::PATCH, &mut item.patch),
        ];
        for (method, operation) in operations {
            if let Some(operation) = operation
                && needs(&method, path) != Needs::Nothing
            {
                describe_operation(operation);
            }
        }
    }
}

fn describe_operation(operation: &mut Operation) {
    // Open servers need none.
    operation.security =
        Some(vec![SecurityRequirement::new::<_, _, String>(SCHEME, []), SecurityRequirement::default()]);
    let responses = &mut operation.responses.responses;
    responses.entry("401".to_owned()).or_insert_with(|| problem("there is no token, or it is not valid").into());
    responses.entry("403".to_owned()).or_insert_with(|| problem("the token may not do this").into());
}

fn problem(description: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ProblemBody"))).build();
    ResponseBuilder::new().description(description).content("application/problem+json", content).build()
}
