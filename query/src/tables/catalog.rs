//! The table `catalog`: descriptions of codes, from a source that the engine is opened with.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use argus_dataflow::RuleSet;
use argus_dataflow::rules::Rule;
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;

/// The table's name in SQL.
pub const CATALOG_TABLE: &str = "catalog";

/// The description of a code, or of all codes that a rule finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogRow {
    /// The code; without one, all codes of the rule.
    pub code: Option<String>,
    /// The rule that finds them.
    pub rule: Option<String>,
    /// The severity of a code if its line names none, as spelled in the tables.
    pub severity: Option<String>,
    /// What it means.
    pub meaning: Option<String>,
    /// What usually causes it.
    pub cause: Option<String>,
    /// What to do.
    pub remedy: Option<String>,
    /// Only on this platform.
    pub platform: Option<String>,
    /// Only with this firmware, or with those of this range.
    pub firmware: Option<String>,
    /// Where the description comes from.
    pub source: Option<String>,
}

impl CatalogRow {
    /// The rows for all rules.
    pub fn of_rules(rules: &RuleSet) -> Vec<CatalogRow> {
        let row = |rule: &Rule| CatalogRow {
            rule: Some(rule.name.to_string()),
            severity: Some(rule.severity.as_str().to_owned()),
            meaning: Some(rule.about.clone()).filter(|about| !about.is_empty()),
            source: Some("rules".to_owned()),
            ..CatalogRow::default()
        };
        rules.rules().iter().map(row).collect()
    }
}

/// Where the rows come from. They are read whenever a query uses the table.
#[async_trait]
pub trait CatalogSource: fmt::Debug + Send + Sync {
    /// The rows now.
    async fn rows(&self) -> Result<Vec<CatalogRow>, Box<dyn Error + Send + Sync>>;
}

/// Rows that never change.
#[async_trait]
impl CatalogSource for Vec<CatalogRow> {
    async fn rows(&self) -> Result<Vec<CatalogRow>, Box<dyn Error + Send + Sync>> {
        Ok(self.clone())
    }
}

/// The rows as a table.
pub(crate) fn catalog_table(rows: &[CatalogRow]) -> Result<MemTable, DataFusionError> {
    type Column = (&'static str, fn(&CatalogRow) -> Option<&str>);
    let columns: [Column; 9] = [
        ("code", |row| row.code.as_deref()),
        ("rule", |row| row.rule.as_deref()),
        ("severity", |row| row.severity.as_deref()),
        ("meaning", |row| row.meaning.as_deref()),
        ("cause", |row| row.cause.as_deref()),
        ("remedy", |row| row.remedy.as_deref()),
        ("platform", |row| row.platform.as_deref()),
        ("firmware", |row| row.firmware.as_deref()),
        ("source", |row| row.source.as_deref()),
    ];
    let fields: Vec<Field> = columns.iter().map(|(name, _)| Field::new(*name, DataType::Utf8, true)).collect();
    let values = |(_, value): &Column| Arc::new(rows.iter().map(value).collect::<StringArray>()) as ArrayRef;
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns.iter().map(values).collect())?;
    MemTable::try_new(schema, vec![vec![batch]])
}
