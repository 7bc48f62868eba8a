//! Binary bodies in the OpenAPI document.
#![expect(dead_code, reason = "only their schemas are used")]

use utoipa::ToSchema;

/// Binary data.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub struct Binary(Vec<u8>);

/// A form with files (`multipart/form-data`).
#[derive(ToSchema)]
pub struct FilesForm {
    /// The files, each with a file name.
    #[schema(value_type = Vec<String>, format = Binary)]
    file: Vec<Vec<u8>>,
}
