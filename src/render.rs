//! Answers for people and for pipes.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use anyhow::Result;
use argus_query::Report;
use argus_query::report::CodeReport;
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use arrow::csv::WriterBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::cli::ReportFormat;
use crate::terminal;

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
    let shown: Vec<_> = report.codes.iter().map(|code| (code, terminal::line(&code.code))).collect();
    let rules: Vec<_> = report.codes.iter().map(|code| terminal::line(&code.rule)).collect();
    let code_width = shown.iter().map(|(_, name)| name.chars().count()).max().unwrap_or(0).max(4);
    let rule_width = rules.iter().map(|rule| rule.chars().count()).max().unwrap_or(0).max(4);
    if !report.codes.is_empty() {
        writeln!(
            out,
            "{:>9}  {:>6}  {:<8}  {:<code_width$}  {:<rule_width$}  EXAMPLE",
            "COUNT", "FILES", "SEVERITY", "CODE", "RULE"
        )?;
    }
    for ((code, name), rule) in shown.iter().zip(rules) {
        let example = &code.example;
        let text: String = example.text.trim().chars().take(EXAMPLE_CHARACTERS).collect();
        writeln!(
            out,
            "{:>9}  {:>6}  {:<8}  {name:<code_width$}  {rule:<rule_width$}  {}:{}  {}",
            code.count,
            code.files,
            code.severity.word(),
            terminal::line(&example.file),
            example.line,
            terminal::line(&text)
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
    )?;
    for file in &report.files {
        let name = terminal::line(&file.name);
        if file.binary {
            writeln!(out, "{name} is binary: it holds bytes that are no text")?;
        }
        if file.codes_limited {
            writeln!(
                out,
                "{name} has more different codes of a rule than are counted by name: the others are in OTHER:"
            )?;
        }
    }
    Ok(())
}

/// Prints rows as a table, each on one line.
pub fn table(out: &mut dyn Write, batches: &[RecordBatch]) -> Result<()> {
    let shown: Vec<RecordBatch> = batches.iter().map(shown).collect::<Result<_>>()?;
    writeln!(out, "{}", pretty_format_batches(&shown)?)?;
    Ok(())
}

/// The rows as texts that a terminal shows.
fn shown(batch: &RecordBatch) -> Result<RecordBatch> {
    let options = FormatOptions::default();
    let columns = batch.columns().iter().map(|column| -> Result<ArrayRef> {
        let values = ArrayFormatter::try_new(column, &options)?;
        let text = |row| Ok(terminal::line(&values.value(row).try_to_string()?).into_owned());
        let texts: Vec<String> = (0..column.len()).map(text).collect::<Result<_>>()?;
        Ok(Arc::new(StringArray::from(texts)))
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let names = batch.schema_ref().fields().iter().map(|field| terminal::line(field.name()));
    let fields: Vec<Field> = names.map(|name| Field::new(name, DataType::Utf8, true)).collect();
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &rows)?)
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
