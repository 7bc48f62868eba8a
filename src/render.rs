//! Answers for people and for pipes.

use std::collections::HashMap;
use std::io::{self, Write};

use anyhow::Result;
use argus_query::Report;
use argus_query::report::CodeReport;
use arrow::array::RecordBatch;
use arrow::csv::WriterBuilder;
use arrow::datatypes::SchemaRef;
use arrow::util::pretty::pretty_format_batches;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::cli::ReportFormat;

/// Lines of an example that a terminal shows are cut to so many characters.
const EXAMPLE_CHARACTERS: usize = 60;

/// Prints a report.
pub fn report(out: &mut dyn Write, report: &Report, format: ReportFormat) -> Result<()> {
    match format {
        ReportFormat::Json => {
            serde_json::to_writer_pretty(&mut *out, report)?;
            writeln!(out)?;
        }
        ReportFormat::Csv => report_csv(out, report)?,
        ReportFormat::Table => report_table(out, report)?,
    }
    out.flush()?;
    Ok(())
}

/// A row for each code in each file.
fn report_csv(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    writeln!(out, "file,code,count,rule,severity")?;
    let codes: HashMap<&str, &CodeReport> = report.codes.iter().map(|code| (code.code.as_str(), code)).collect();
    for file in &report.files {
        for (name, count) in &file.codes {
            let Some(code) = codes.get(name.as_str()) else { continue };
            writeln!(
                out,
                "{},{},{count},{},{}",
                csv_field(&file.name),
                csv_field(name),
                csv_field(&code.rule),
                code.severity.word()
            )?;
        }
    }
    Ok(())
}

/// A field by RFC 4180.
fn csv_field(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

fn report_table(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let width = |of: fn(&CodeReport) -> usize, least| report.codes.iter().map(of).max().unwrap_or(0).max(least);
    let code_width = width(|code| code.code.chars().count(), 4);
    let rule_width = width(|code| code.rule.chars().count(), 4);
    if !report.codes.is_empty() {
        writeln!(
            out,
            "{:>9}  {:>6}  {:<8}  {:<code_width$}  {:<rule_width$}  EXAMPLE",
            "COUNT", "FILES", "SEVERITY", "CODE", "RULE"
        )?;
    }
    for code in &report.codes {
        let example = &code.example;
        let text: String = example
            .text
            .trim()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(EXAMPLE_CHARACTERS)
            .collect();
        writeln!(
            out,
            "{:>9}  {:>6}  {:<8}  {:<code_width$}  {:<rule_width$}  {}:{}  {text}",
            code.count,
            code.files,
            code.severity.word(),
            code.code,
            code.rule,
            example.file,
            example.line
        )?;
    }
    if !report.codes.is_empty() {
        writeln!(out)?;
    }
    writeln!(
        out,
        "{} codes seen {} times in {} of {} lines of {} files ({} bytes)",
        report.codes.len(),
        report.total_errors,
        report.error_lines,
        report.total_lines,
        report.total_files,
        report.total_bytes
    )
}

/// Prints rows as a table.
pub fn table(out: &mut dyn Write, batches: &[RecordBatch]) -> Result<()> {
    writeln!(out, "{}", pretty_format_batches(batches)?)?;
    Ok(())
}

/// Prints rows as CSV with a header; times as RFC 3339.
pub fn csv(out: &mut dyn Write, batches: &[RecordBatch]) -> Result<()> {
    let mut writer = WriterBuilder::new().with_header(true).build(out);
    for batch in batches {
        writer.write(batch)?;
    }
    Ok(())
}

/// Prints rows as a list of objects.
pub fn json(out: &mut dyn Write, batches: &[RecordBatch]) -> Result<()> {
    let mut objects = Vec::new();
    for batch in batches {
        let schema = batch.schema();
        for row in argus_query::rows::rows(batch)? {
            objects.push(Object { schema: schema.clone(), row });
        }
    }
    serde_json::to_writer_pretty(&mut *out, &objects)?;
    writeln!(out)?;
    Ok(())
}

/// A row as an object whose members stand in the order of the columns.
struct Object {
    schema: SchemaRef,
    row: Value,
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let names = self.schema.fields().iter().map(|field| field.name());
        serializer.collect_map(names.zip(self.row.as_array().into_iter().flatten()))
    }
}
