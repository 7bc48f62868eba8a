//! Functions of PostgreSQL that tools call when they connect, and that the crate lacks.
//!
//! Their results describe this server: no indexes, no triggers, no sizes on disk
//! and no other users. Without a meaningful result they return null.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::common::{ScalarValue, exec_err};
use datafusion::error::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use datafusion::prelude::SessionContext;

use crate::tables::catalog::CATALOG_TABLE;
use crate::tables::views::VIEWS;

/// The version of PostgreSQL that the server reports.
pub(super) const SERVER_VERSION: &str = "16.6";
/// The same as a number.
const SERVER_VERSION_NUMBER: &str = "160006";

/// Functions that ignore their arguments: names and results.
fn constants() -> Vec<(&'static str, ScalarValue)> {
    let text = |text: &str| ScalarValue::Utf8(Some(text.to_owned()));
    let nothing = ScalarValue::Utf8(None);
    let (yes, no) = (ScalarValue::Boolean(Some(true)), ScalarValue::Boolean(Some(false)));
    let zero = ScalarValue::Int64(Some(0));
    let mut all =
        vec![("version", text(&format!("PostgreSQL {SERVER_VERSION} (Argus {})", env!("CARGO_PKG_VERSION"))))];
    for name in [
        "obj_description",
        "col_description",
        "shobj_description",
        "pg_get_serial_sequence",
        "pg_get_indexdef",
        "pg_get_constraintdef",
        "pg_get_viewdef",
        "pg_get_ruledef",
        "pg_get_triggerdef",
        "pg_get_functiondef",
        "pg_get_function_arguments",
        "pg_get_function_identity_arguments",
        "pg_get_function_result",
        "pg_get_function_sqlbody",
        "pg_get_statisticsobjdef",
        "pg_tablespace_location",
        "inet_server_addr",
        "inet_client_addr",
        "pg_describe_object",
        "json_build_object",
    ] {
        all.push((name, nothing.clone()));
    }
    for name in [
        "pg_function_is_visible",
        "pg_type_is_visible",
        "pg_operator_is_visible",
        "pg_opclass_is_visible",
        "pg_opfamily_is_visible",
        "pg_collation_is_visible",
        "pg_conversion_is_visible",
        "pg_ts_config_is_visible",
        "pg_ts_dict_is_visible",
        "pg_ts_parser_is_visible",
        "pg_ts_template_is_visible",
        "pg_statistics_obj_is_visible",
        "pg_has_role",
        "has_function_privilege",
        "has_sequence_privilege",
        "has_column_privilege",
        "has_tablespace_privilege",
        "has_language_privilege",
        "has_type_privilege",
        "pg_try_advisory_lock",
        "pg_advisory_unlock",
    ] {
        all.push((name, yes.clone()));
    }
    // Users cannot create types, schemas, roles or functions.
    for name in [
        "generate_subscripts",
        "to_regtype",
        "to_regnamespace",
        "to_regrole",
        "to_regproc",
        "to_regprocedure",
        "to_regoper",
    ] {
        all.push((name, ScalarValue::Int32(None)));
    }
    for name in ["pg_is_in_recovery", "pg_is_other_temp_schema", "row_security_active", "pg_is_wal_replay_paused"] {
        all.push((name, no.clone()));
    }
    for name in [
        "pg_relation_size",
        "pg_total_relation_size",
        "pg_table_size",
        "pg_indexes_size",
        "pg_database_size",
        "pg_tablespace_size",
        "pg_my_temp_schema",
        "inet_server_port",
        "inet_client_port",
        "txid_current",
    ] {
        all.push((name, zero.clone()));
    }
    all
}

/// Registers all of these functions.
pub(super) fn register(session: &SessionContext) -> Result<()> {
    let state = session.state_ref();
    let mut state = state.write();
    for (name, value) in constants() {
        state.register_udf(Arc::new(ScalarUDF::from(Function::new(name, Answer::Always(value)))))?;
    }
    for (name, of) in [
        ("current_setting", current_setting as TextFunction),
        ("set_config", set_config),
        ("to_regclass", to_regclass),
        ("pg_size_pretty", pg_size_pretty),
        ("quote_literal", quote_literal),
        ("quote_nullable", quote_nullable),
    ] {
        state.register_udf(Arc::new(ScalarUDF::from(Function::new(name, Answer::Text(of)))))?;
    }
    Ok(())
}

type TextFunction = fn(&[Option<&str>]) -> Result<Option<String>>;

/// The result of a function.
#[derive(Debug, Clone)]
enum Answer {
    /// A constant.
    Always(ScalarValue),
    /// A text computed from its arguments as texts.
    Text(TextFunction),
}

#[derive(Debug)]
struct Function {
    name: &'static str,
    answer: Answer,
    signature: Signature,
}

impl Function {
    fn new(name: &'static str, answer: Answer) -> Function {
        let any = TypeSignature::OneOf(vec![TypeSignature::Nullary, TypeSignature::VariadicAny]);
        Function { name, answer, signature: Signature::new(any, Volatility::Stable) }
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Function) -> bool {
        self.name == other.name
    }
}

impl Eq for Function {}

impl std::hash::Hash for Function {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match &self.answer {
            Answer::Always(value) => value.data_type(),
            Answer::Text(_) => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let of = match &self.answer {
            Answer::Always(value) => return Ok(ColumnarValue::Scalar(value.clone())),
            Answer::Text(of) => of,
        };
        let texts = args.args.iter().map(|arg| Ok(cast(&arg.to_array(args.number_rows)?, &DataType::Utf8)?));
        let texts: Vec<ArrayRef> = texts.collect::<Result<_>>()?;
        let mut answers = StringBuilder::new();
        for row in 0..args.number_rows {
            let values: Vec<Option<&str>> = texts
                .iter()
                .map(|texts| texts.as_string::<i32>())
                .map(|texts| texts.is_valid(row).then(|| texts.value(row)))
                .collect();
            answers.append_option(of(&values)?);
        }
        Ok(ColumnarValue::Array(Arc::new(answers.finish())))
    }
}

/// `current_setting(name [, missing_ok])`.
fn current_setting(args: &[Option<&str>]) -> Result<Option<String>> {
    let Some(Some(name)) = args.first() else { return Ok(None) };
    let value = match name.to_ascii_lowercase().as_str() {
        "server_version" => SERVER_VERSION,
        "server_version_num" => SERVER_VERSION_NUMBER,
        "server_encoding" | "client_encoding" => "UTF8",
        "timezone" | "log_timezone" => "UTC",
        "datestyle" => "ISO, MDY",
        "intervalstyle" => "postgres",
        "search_path" => "public",
        "standard_conforming_strings"
        | "integer_datetimes"
        | "default_transaction_read_only"
        | "transaction_read_only" => "on",
        "transaction_isolation" | "default_transaction_isolation" => "repeatable read",
        "max_identifier_length" => "63",
        "max_index_keys" => "32",
        "block_size" => "8192",
        "is_superuser" | "row_security" | "ssl" => "off",
        "statement_timeout" | "lock_timeout" => "0",
        "lc_collate" | "lc_ctype" => "C.UTF-8",
        "bytea_output" => "hex",
        "application_name" | "session_authorization" | "role" | "password_encryption" => "",
        _ if args.get(1).copied().flatten().is_some_and(|missing| missing == "true") => return Ok(None),
        _ => return exec_err!("unrecognized configuration parameter {name:?}"),
    };
    Ok(Some(value.to_owned()))
}

/// `set_config(name, value, is_local)`: changes nothing, because clients use `SET`; returns `value`.
fn set_config(args: &[Option<&str>]) -> Result<Option<String>> {
    Ok(args.get(1).copied().flatten().map(str::to_owned))
}

/// `to_regclass(name)`: the table's name, or null where there is no such table.
fn to_regclass(args: &[Option<&str>]) -> Result<Option<String>> {
    let Some(Some(name)) = args.first() else { return Ok(None) };
    let bare = name.trim_matches('"');
    let bare = bare.strip_prefix("public.").unwrap_or(bare).trim_matches('"');
    let is_table =
        VIEWS.iter().any(|view| view.name == bare) || bare == CATALOG_TABLE || bare.starts_with("pg_catalog.");
    Ok(is_table.then(|| bare.to_owned()))
}

/// `quote_literal(text)`: the text as a string literal.
fn quote_literal(args: &[Option<&str>]) -> Result<Option<String>> {
    let Some(Some(text)) = args.first() else { return Ok(None) };
    let doubled = text.replace('\'', "''");
    Ok(Some(match doubled.contains('\\') {
        true => format!("E'{}'", doubled.replace('\\', "\\\\")),
        false => format!("'{doubled}'"),
    }))
}

/// `quote_nullable(text)`: the same, or `NULL` for a null.
fn quote_nullable(args: &[Option<&str>]) -> Result<Option<String>> {
    Ok(Some(quote_literal(args)?.unwrap_or_else(|| "NULL".to_owned())))
}

/// `pg_size_pretty(bytes)`.
fn pg_size_pretty(args: &[Option<&str>]) -> Result<Option<String>> {
    const UNITS: [&str; 6] = ["bytes", "kB", "MB", "GB", "TB", "PB"];
    let Some(Some(bytes)) = args.first() else { return Ok(None) };
    let Ok(mut size) = bytes.split('.').next().unwrap_or(bytes).parse::<i64>() else { return Ok(None) };
    let mut unit = 0;
    // Like PostgreSQL, uses the next unit from 10 of it on.
    while size.unsigned_abs() >= 10 * 1024 && unit + 1 < UNITS.len() {
        size = size.saturating_add(512 * size.signum()) / 1024;
        unit += 1;
    }
    Ok(Some(format!("{size} {}", UNITS[unit])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_tables_and_sizes_are_formatted_as_in_postgresql() {
        let result = |of: TextFunction, args: &[&str]| {
            let args: Vec<Option<&str>> = args.iter().map(|arg| Some(*arg)).collect();
            of(&args).map_or_else(|error| error.strip_backtrace(), |text| text.unwrap_or_else(|| "null".to_owned()))
        };
        assert_eq!(result(current_setting, &["server_version_num"]), SERVER_VERSION_NUMBER);
        assert_eq!(result(current_setting, &["TimeZone"]), "UTC");
        assert_eq!(result(current_setting, &["nosuch", "true"]), "null");
        assert!(result(current_setting, &["nosuch"]).contains("unrecognized configuration parameter \"nosuch\""));
        assert_eq!(result(to_regclass, &["public.errors"]), "errors");
        assert_eq!(result(to_regclass, &["nosuch"]), "null");
        for (bytes, pretty) in [("0", "0 bytes"), ("10239", "10239 bytes"), ("10240", "10 kB"), ("123456789", "118 MB")]
        {
            assert_eq!(result(pg_size_pretty, &[bytes]), pretty);
        }
        for (text, quoted) in [("a", "'a'"), ("a'b", "'a''b'"), ("a\\'", "E'a\\\\'''")] {
            assert_eq!(result(quote_literal, &[text]), quoted);
        }
        assert_eq!((result(quote_literal, &[]), result(quote_nullable, &[])), ("null".to_owned(), "NULL".to_owned()));
    }
}
