//! Bytes that are no JSON, as the OpenAPI document tells of them.
#![expect(dead_code, reason = "each says what a body holds")]

use utoipa::ToSchema;

/// Bytes as they are.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub struct Binary(Vec<u8>);

/// A form with files.
#[derive(ToSchema)]
pub struct FilesForm {
    /// The files, each with its name.
    #[schema(value_type = Vec<String>, format = Binary)]
    file: Vec<Vec<u8>>,
}
