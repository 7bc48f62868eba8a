//! The table `catalog`: descriptions of codes.
//!
//! For now it has a row for each rule, which describes all codes that the rule finds.

use std::sync::Arc;

use argus_dataflow::RuleSet;
use argus_dataflow::rules::Rule;
use arrow::array::{ArrayRef, RecordBatch, StringArray, new_null_array};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;

/// The table's name in SQL.
pub const CATALOG_TABLE: &str = "catalog";

/// The description of all codes that a rule finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogRow {
    /// The rule that finds them.
    pub rule: String,
    /// The severity of a code if its line names none, as spelled in the tables.
    pub severity: &'static str,
    /// What the codes mean, if the rule has a description.
    pub meaning: Option<String>,
}

impl CatalogRow {
    /// The rows for all rules.
    pub fn of_rules(rules: &RuleSet) -> Vec<CatalogRow> {
        let row = |rule: &Rule| CatalogRow {
            rule: rule.name.to_string(),
            severity: rule.severity.as_str(),
            meaning: Some(rule.about.clone()).filter(|about| !about.is_empty()),
        };
        rules.rules().iter().map(row).collect()
    }
}

/// The rows as a table.
pub(crate) fn catalog_table(rows: &[CatalogRow]) -> Result<MemTable, DataFusionError> {
    let column = |name, nullable| Field::new(name, DataType::Utf8, nullable);
    let schema = Arc::new(Schema::new(vec![
        column("code", true),
        column("rule", false),
        column("severity", false),
        column("meaning", true),
        column("cause", true),
        column("remedy", true),
    ]));
    let nothing = || new_null_array(&DataType::Utf8, rows.len());
    let columns: Vec<ArrayRef> = vec![
        nothing(),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.rule))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.severity))),
        Arc::new(rows.iter().map(|row| row.meaning.as_deref()).collect::<StringArray>()),
        nothing(),
        nothing(),
    ];
    MemTable::try_new(Arc::clone(&schema), vec![vec![RecordBatch::try_new(schema, columns)?]])
}
