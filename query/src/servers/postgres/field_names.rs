//! Names of columns as PostgreSQL clients see them.

use std::sync::Arc;

use datafusion_postgres::pgwire::api::results::FieldInfo;

use crate::sql::rewrite::name_as_written;

/// A column with its name as the query spells it.
pub(super) fn named_as_written(field: FieldInfo) -> FieldInfo {
    let name = name_as_written(field.name());
    if name.len() == field.name().len() {
        return field;
    }
    FieldInfo::new(name.to_owned(), field.table_id(), field.column_id(), field.datatype().clone(), field.format())
        .with_format_options(Arc::clone(field.format_options()))
}
