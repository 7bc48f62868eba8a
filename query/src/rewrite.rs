//! What is written in PostgreSQL's way and means something else to the engine, or nothing, is put into its words before it
//! is planned, or refused by name.
//!
//! | written | what the engine would make of it | becomes |
//! |---|---|---|
//! | `SELECT code, code` | an error | columns of other names, which answers show as they were |
//! | `x SIMILAR TO 'a%'` | a search for a regular expression | a match of the whole text |
//! | `ts AT TIME ZONE 'Europe/Berlin'` | an instant | `at_time_zone(…)`: the local time |
//! | `to_char(ts, 'YYYY-MM')` | the text `YYYY-MM` | `to_char(ts, '%Y-%m')` |
//! | `labels ->> 'site'` | an error | `label_value(labels, 'site')` |
//! | `ARRAY(SELECT …)` | an unknown function | a query with `array_agg` |
//! | `FROM errors TABLESAMPLE …` | all rows | refused |
//!
//! A statement in which there is nothing of this stays as it was written.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    AccessExpr, BinaryOperator, CastKind, DataType, DollarQuotedString, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArguments, Ident, Query, SelectItem, SetExpr, Statement, TableFactor, Value, ValueWithSpan, VisitMut,
    VisitorMut, visit_expressions,
};
use datafusion::sql::sqlparser::dialect::{Dialect, PostgreSqlDialect};
use datafusion::sql::sqlparser::parser::Parser;

use crate::query_error::QueryError;

/// Stands behind a column's name, before a number, where another one of that name is before it.
const AGAIN: char = '\u{2}';

/// A column's name as it was written.
pub(crate) fn name_as_written(name: &str) -> &str {
    name.split(AGAIN).next().unwrap_or(name)
}

/// Statements in the engine's words.
pub(crate) fn rewrite<'s>(sql: &'s str, dialect: &dyn Dialect) -> Result<Cow<'s, str>, QueryError> {
    // What cannot be read is for the engine to complain about.
    let Ok(statements) = Parser::parse_sql(dialect, sql) else { return Ok(Cow::Borrowed(sql)) };
    Ok(rewrite_statements(statements, &mut Words::default())?.map_or(Cow::Borrowed(sql), Cow::Owned))
}

/// The same of what tools ask of PostgreSQL's catalog: what ours does not have is null.
pub(crate) fn rewrite_of_catalog(statements: Vec<Statement>) -> Result<Option<String>, QueryError> {
    rewrite_statements(statements, &mut Words { of_catalog: true, ..Words::default() })
}

/// `None` where they are already.
fn rewrite_statements(mut statements: Vec<Statement>, words: &mut Words) -> Result<Option<String>, QueryError> {
    for statement in &mut statements {
        if let ControlFlow::Break(refused) = statement.visit(words) {
            return Err(*refused);
        }
        if let Statement::Query(query) = statement {
            words.changed |= name_apart(query);
        }
    }
    let texts = || statements.into_iter().map(printed).collect::<Vec<_>>().join("; ");
    Ok(words.changed.then(texts))
}

/// A statement or query as text that means the same.
pub(crate) fn printed(mut tree: impl VisitMut + ToString) -> String {
    let _ = tree.visit(&mut DollarQuotes);
    tree.to_string()
}

/// Puts texts with quotes in them between dollars: the parser's crate guesses which quotes are doubled already when it
/// prints them between quotes, and ends `a\'b` too early.
struct DollarQuotes;

impl VisitorMut for DollarQuotes {
    type Break = ();

    fn pre_visit_value(&mut self, value: &mut ValueWithSpan) -> ControlFlow<()> {
        if let Value::SingleQuotedString(text) | Value::NationalStringLiteral(text) = &mut value.value
            && text.contains('\'')
        {
            let mut tag = "q".to_owned();
            while text.contains(&format!("${tag}")) {
                tag.push('q');
            }
            let text = DollarQuotedString { value: std::mem::take(text), tag: Some(tag) };
            value.value = Value::DollarQuotedString(text);
        }
        ControlFlow::Continue(())
    }
}

/// Gives columns of one name names of their own.
fn name_apart(query: &mut Query) -> bool {
    let mut body = query.body.as_mut();
    loop {
        body = match body {
            SetExpr::Query(query) => query.body.as_mut(),
            SetExpr::SetOperation { left, .. } => left.as_mut(),
            SetExpr::Select(select) => {
                let mut seen: HashMap<String, usize> = HashMap::new();
                let mut changed = false;
                for item in &mut select.projection {
                    let SelectItem::UnnamedExpr(expr) = item else { continue };
                    if is_user(expr) {
                        // The engine has one name for all of these.
                        let alias = Ident::with_quote('"', expr.to_string().to_lowercase());
                        *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
                        changed = true;
                        continue;
                    }
                    let count = seen.entry(expr.to_string()).or_default();
                    *count += 1;
                    if *count > 1 {
                        let alias = Ident::with_quote('"', format!("{}{AGAIN}{count}", column_name(expr)));
                        *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
                        changed = true;
                    }
                }
                return changed;
            }
            _ => return false,
        };
    }
}

fn is_user(expr: &Expr) -> bool {
    ["current_user", "session_user", "user", "current_role"].contains(&expr.to_string().to_lowercase().as_str())
}

/// What an answer calls a column that nobody named.
fn column_name(expr: &Expr) -> String {
    match expr {
        Expr::Identifier(name) => name.value.clone(),
        Expr::CompoundIdentifier(names) => names.last().map_or_else(String::new, |name| name.value.clone()),
        other => other.to_string(),
    }
}

#[derive(Default)]
struct Words {
    changed: bool,
    /// Whether they ask for what PostgreSQL knows of itself.
    of_catalog: bool,
}

type Refused = Box<QueryError>;

fn refused(what: impl Into<String>) -> ControlFlow<Refused> {
    ControlFlow::Break(Box::new(QueryError::Unsupported(what.into())))
}

impl VisitorMut for Words {
    type Break = Refused;

    fn pre_visit_table_factor(&mut self, table: &mut TableFactor) -> ControlFlow<Refused> {
        match table {
            TableFactor::Table { sample: Some(_), .. } | TableFactor::Derived { sample: Some(_), .. } => {
                refused("TABLESAMPLE is not supported; ask with ORDER BY random() LIMIT n")
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn post_visit_table_factor(&mut self, table: &mut TableFactor) -> ControlFlow<Refused> {
        if self.of_catalog
            && let TableFactor::Table { name, alias, .. } = table
            && name.to_string().eq_ignore_ascii_case("pg_catalog.pg_settings")
        {
            let alias = alias.take();
            let put = settings().map(|subquery| TableFactor::Derived { lateral: false, subquery, alias, sample: None });
            if let Some(put) = put {
                *table = put;
                self.changed = true;
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Refused> {
        let put = match expr {
            Expr::SimilarTo { negated, expr, pattern, escape_char: None } => {
                let Some(pattern) = text_of(pattern) else {
                    return refused("SIMILAR TO takes a text that is written out; ask with ~ and a regular expression");
                };
                let Some(regex) = similar(pattern) else {
                    return refused(format!(
                        "{pattern:?} is no pattern for SIMILAR TO; ask with ~ and a regular expression"
                    ));
                };
                let matches = call("regexp_like", vec![(**expr).clone(), text(&regex)]);
                if *negated { Expr::Nested(Box::new(not(matches))) } else { matches }
            }
            Expr::SimilarTo { .. } => return refused("SIMILAR TO … ESCAPE is not supported; ask with ~"),
            Expr::AtTimeZone { timestamp, time_zone } => {
                call("at_time_zone", vec![(**timestamp).clone(), (**time_zone).clone()])
            }
            _ if self.of_catalog && is_access(expr) => no_text(),
            Expr::Subquery(query) if self.of_catalog && is_of_nothing(query) => nothing_with(query),
            Expr::Subquery(query) if self.of_catalog => match aggregated(query) {
                Some(query) => Expr::Subquery(query),
                None => return ControlFlow::Continue(()),
            },
            Expr::Like { negated, any: false, expr, pattern, escape_char: Some(escape) }
                if escape.to_string() != "'\\'" =>
            {
                let Value::SingleQuotedString(escape) = &escape.value else { return ControlFlow::Continue(()) };
                // The engine escapes by backslashes only.
                let plain = call("replace", vec![(**pattern).clone(), text("\\"), text("\\\\")]);
                let pattern = Box::new(call("replace", vec![plain, text(escape), text("\\")]));
                Expr::Like { negated: *negated, any: false, expr: expr.clone(), pattern, escape_char: None }
            }
            Expr::BinaryOp { left, op: BinaryOperator::NotEq, right }
                if self.of_catalog && right.to_string() == "0" && is_function_of_type(left) =>
            {
                Expr::IsNotNull(left.clone())
            }
            Expr::BinaryOp { left, op: op @ (BinaryOperator::Eq | BinaryOperator::NotEq), right }
                if self.of_catalog && is_function_of_type(left) =>
            {
                let Some(name) = text_within(right) else { return ControlFlow::Continue(()) };
                let right = text(name.trim_start_matches("pg_catalog."));
                Expr::BinaryOp { left: left.clone(), op: op.clone(), right: Box::new(right) }
            }
            Expr::CompoundFieldAccess { .. } if self.of_catalog && is_of_key(expr) => no_number(),
            Expr::BinaryOp { left, op: BinaryOperator::LongArrow, right } => {
                call("label_value", vec![(**left).clone(), (**right).clone()])
            }
            Expr::Function(function) => match put_function(function, self.of_catalog) {
                Ok(Some(put)) => put,
                Ok(None) => return ControlFlow::Continue(()),
                Err(what) => return refused(what),
            },
            _ => return ControlFlow::Continue(()),
        };
        *expr = put;
        self.changed = true;
        ControlFlow::Continue(())
    }
}

/// The settings that clients ask a table for: beside the crate's own, how many columns a key may have (JDBC).
fn settings() -> Option<Box<Query>> {
    const SETTINGS: &str = "SELECT * FROM pg_catalog.pg_settings UNION ALL SELECT 'max_index_keys', '32', NULL, NULL, \
                            NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL";
    let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, SETTINGS).ok()?;
    match statements.pop()? {
        Statement::Query(query) => Some(query),
        _ => None,
    }
}

/// Whether it is a column that names a function of a type, where PostgreSQL has a number.
fn is_function_of_type(expr: &Expr) -> bool {
    let name = expr.to_string();
    ["typreceive", "typsend", "typinput", "typoutput"].contains(&name.rsplit('.').next().unwrap_or(&name))
}

/// The first text that is written out in an expression.
fn text_within(expr: &Expr) -> Option<String> {
    let found = visit_expressions(expr, |expr| match text_of(expr) {
        Some(text) => ControlFlow::Break(text.to_owned()),
        None => ControlFlow::Continue(()),
    });
    match found {
        ControlFlow::Break(text) => Some(text),
        ControlFlow::Continue(()) => None,
    }
}

/// Whether it is a part of the key of an index or a constraint, of which there are none: `conkey[1]`, `(keys).n`.
fn is_of_key(expr: &Expr) -> bool {
    let Expr::CompoundFieldAccess { root, access_chain } = expr else { return false };
    let is_field = matches!(**root, Expr::Nested(_)) && matches!(access_chain[..], [AccessExpr::Dot(_)]);
    let text = expr.to_string().to_lowercase();
    is_field || ["conkey", "confkey", "indkey", "indoption"].iter().any(|key| text.contains(key))
}

/// Whether it is a column of access rights or options, which nobody has granted or set.
fn is_access(expr: &Expr) -> bool {
    let name = match expr {
        Expr::Identifier(name) => name,
        Expr::CompoundIdentifier(names) => match names.last() {
            Some(name) => name,
            None => return false,
        },
        _ => return false,
    };
    ["relacl", "nspacl", "datacl", "proacl", "typacl", "lanacl", "spcacl", "attacl", "reloptions"]
        .contains(&name.value.as_str())
}

/// A null that is a text.
fn no_text() -> Expr {
    null_of(DataType::Text)
}

/// A null that is a number.
fn no_number() -> Expr {
    null_of(DataType::Integer(None))
}

fn null_of(data_type: DataType) -> Expr {
    let expr = Box::new(Expr::Value(Value::Null.into()));
    Expr::Cast { kind: CastKind::Cast, expr, data_type, array: false, format: None }
}

/// Whether a query asks for what no column of ours has: a default, a sequence, a collation.
fn is_of_nothing(query: &Query) -> bool {
    let text = query.to_string();
    ["pg_attrdef", "pg_sequence", "pg_collation"].iter().any(|table| text.contains(table))
}

/// Null in the place of a query. Its parameters stay, for the others go by their numbers.
fn nothing_with(query: &Query) -> Expr {
    let mut parameters = Vec::new();
    let _ = visit_expressions(query, |expr| {
        if let Expr::Value(value) = expr
            && let Value::Placeholder(_) = value.value
        {
            parameters.push(expr.clone());
        }
        ControlFlow::<()>::Continue(())
    });
    if parameters.is_empty() { no_text() } else { call("json_build_object", parameters) }
}

/// A query for one value of one row as one over all of them: the engine wants to see that there is at most one.
fn aggregated(query: &Query) -> Option<Box<Query>> {
    let SetExpr::Select(select) = query.body.as_ref() else { return None };
    let [SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }] = &select.projection[..] else {
        return None;
    };
    let is_aggregate = |name: String| {
        ["max", "min", "count", "sum", "array_agg", "string_agg", "bool_and", "bool_or"].contains(&name.as_str())
    };
    let is_one = matches!(expr, Expr::Function(function) if is_aggregate(function.name.to_string().to_lowercase()));
    if is_one || select.selection.is_none() || query.limit_clause.is_some() {
        return None;
    }
    let mut select = select.clone();
    select.projection = vec![SelectItem::UnnamedExpr(call("max", vec![expr.clone()]))];
    Some(Box::new(Query { body: Box::new(SetExpr::Select(select)), ..query.clone() }))
}

/// A call in the engine's words; `None` where it is already.
fn put_function(function: &Function, of_catalog: bool) -> Result<Option<Expr>, String> {
    let name = function.name.to_string().to_lowercase();
    let name = name.trim_start_matches("pg_catalog.").trim_start_matches("information_schema.");
    match (name, &function.args) {
        ("array", FunctionArguments::Subquery(_)) if of_catalog => Ok(Some(no_text())),
        // Of columns of constraints and indexes, of which there are none.
        ("unnest" | "_pg_expandarray", _) if of_catalog => Ok(Some(no_number())),
        ("array_to_string", FunctionArguments::List(list)) if of_catalog => {
            let nothing = list.args.first().is_some_and(|arg| arg.to_string().contains("CAST(NULL AS TEXT)"));
            Ok(nothing.then(no_text))
        }
        ("array", FunctionArguments::Subquery(query)) => {
            let query = printed(query.clone());
            let sql = format!("(SELECT array_agg(item) FROM ({query}) AS items (item))");
            let read = Parser::new(&PostgreSqlDialect {}).try_with_sql(&sql).and_then(|mut parser| parser.parse_expr());
            read.map(Some).map_err(|error| error.to_string())
        }
        ("to_char", FunctionArguments::List(list)) => {
            let [_, FunctionArg::Unnamed(FunctionArgExpr::Expr(pattern))] = &list.args[..] else { return Ok(None) };
            let Some(pattern) = text_of(pattern).filter(|pattern| !pattern.contains('%')) else { return Ok(None) };
            let format = to_char_format(pattern)?;
            let mut put = function.clone();
            if let FunctionArguments::List(list) = &mut put.args {
                list.args[1] = FunctionArg::Unnamed(FunctionArgExpr::Expr(text(&format)));
            }
            Ok(Some(Expr::Function(put)))
        }
        _ => Ok(None),
    }
}

fn text_of(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

fn text(text: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(text.to_owned()).into())
}

fn not(expr: Expr) -> Expr {
    Expr::UnaryOp { op: datafusion::sql::sqlparser::ast::UnaryOperator::Not, expr: Box::new(expr) }
}

fn call(name: &str, args: Vec<Expr>) -> Expr {
    use datafusion::sql::sqlparser::ast::{FunctionArgumentList, ObjectName};
    let args = args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// A pattern of SIMILAR TO as a regular expression of the whole text (PostgreSQL, 9.7.2).
fn similar(pattern: &str) -> Option<String> {
    let mut regex = "^(?:".to_owned();
    let mut letters = pattern.chars();
    let mut in_brackets = false;
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => regex.push_str(&escaped(letters.next()?)),
            '[' if !in_brackets => {
                in_brackets = true;
                regex.push('[');
            }
            ']' if in_brackets => {
                in_brackets = false;
                regex.push(']');
            }
            letter if in_brackets => regex.push(letter),
            '%' => regex.push_str("(?s:.*)"),
            '_' => regex.push_str("(?s:.)"),
            '|' | '*' | '+' | '?' | '{' | '}' | '(' | ')' => regex.push(letter),
            letter => regex.push_str(&escaped(letter)),
        }
    }
    regex.push_str(")$");
    (!in_brackets).then_some(regex)
}

fn escaped(letter: char) -> String {
    match letter {
        // A word's borders in an expression.
        '<' | '>' => letter.to_string(),
        letter if letter.is_ascii_punctuation() => format!("\\{letter}"),
        letter => letter.to_string(),
    }
}

/// A pattern of `to_char` for times (PostgreSQL, table 9.31) as the engine writes it.
fn to_char_format(pattern: &str) -> Result<String, String> {
    /// The longer before those that they begin with.
    const PATTERNS: [(&str, &str); 30] = [
        ("FMMonth", "%B"),
        ("FMDay", "%A"),
        ("FMDD", "%-d"),
        ("FMMM", "%-m"),
        ("FMHH24", "%-H"),
        ("FMHH12", "%-I"),
        ("YYYY", "%Y"),
        ("IYYY", "%G"),
        ("HH24", "%H"),
        ("HH12", "%I"),
        ("SSSSS", ""),
        ("Month", ""),
        ("MONTH", ""),
        ("month", ""),
        ("DDD", "%j"),
        ("Day", ""),
        ("DAY", ""),
        ("Mon", "%b"),
        ("YY", "%y"),
        ("MM", "%m"),
        ("DD", "%d"),
        ("HH", "%I"),
        ("MI", "%M"),
        ("SS", "%S"),
        ("MS", "%3f"),
        ("US", "%6f"),
        ("AM", "%p"),
        ("PM", "%p"),
        ("Dy", "%a"),
        ("IW", "%V"),
    ];
    let unknown = || {
        Err(format!(
            "to_char does not know the pattern {pattern:?}; it knows YYYY, MM, DD, HH24, MI, SS, MS, US, Mon, Dy and those of \
             strftime (%Y-%m-%d)"
        ))
    };
    let mut format = String::new();
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        if let Some(quoted) = rest.strip_prefix('"') {
            let Some((text, behind)) = quoted.split_once('"') else { return unknown() };
            format.push_str(&text.replace('%', "%%"));
            rest = behind;
        } else if let Some((known, put)) = PATTERNS.iter().find(|(known, _)| rest.starts_with(known)) {
            if put.is_empty() {
                return unknown();
            }
            format.push_str(put);
            rest = &rest[known.len()..];
        } else if first.is_ascii_alphanumeric() && first != 'T' {
            return unknown();
        } else {
            format.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    Ok(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, expected: &str) {
        let rewritten = rewrite(sql, &PostgreSqlDialect {});
        let rewritten = rewritten.map_or_else(|error| error.to_string(), Cow::into_owned);
        assert_eq!(rewritten.replace(AGAIN, "#"), expected, "{sql}");
    }

    #[test]
    fn what_the_engine_reads_otherwise_is_put_into_its_words() {
        check("SELECT  1 AS a", "SELECT  1 AS a");
        check("no statement", "no statement");
        check("SELECT code, e.code, code FROM errors e", "SELECT code, e.code, code AS \"code#2\" FROM errors e");
        check("SELECT count(*), count(*)", "SELECT count(*), count(*) AS \"count(*)#2\"");
        check("SELECT a SIMILAR TO 'P0.(A|B)_%'", "SELECT regexp_like(a, '^(?:P0\\.(A|B)(?s:.)(?s:.*))$')");
        check("SELECT a NOT SIMILAR TO 'x'", "SELECT (NOT regexp_like(a, '^(?:x)$'))");
        check("SELECT ts AT TIME ZONE 'CET'", "SELECT at_time_zone(ts, 'CET')");
        check("SELECT to_char(ts, 'YYYY-MM-DD\"T\"HH24:MI:SS.MS')", "SELECT to_char(ts, '%Y-%m-%dT%H:%M:%S.%3f')");
        check("SELECT to_char(ts, '%Y')", "SELECT to_char(ts, '%Y')");
        check("SELECT a LIKE b ESCAPE '/'", "SELECT a LIKE replace(replace(b, '\\', '\\\\'), '/', '\\')");
        check(
            "SELECT current_user, session_user",
            "SELECT current_user AS \"current_user\", session_user AS \"session_user\"",
        );
        check("SELECT labels ->> 'site'", "SELECT label_value(labels, 'site')");
        check("SELECT ARRAY(SELECT 1)", "SELECT (SELECT array_agg(item) FROM (SELECT 1) AS items (item))");
        check("SELECT a SIMILAR TO '<b''c>'", "SELECT regexp_like(a, $q$^(?:<b\\'c>)$$q$)");
        assert_eq!(name_as_written("code\u{2}2"), "code");
    }

    #[test]
    fn texts_stay_what_they_are() {
        for text in ["a'b", "a''b", "a\\'", "\\' OR 1=1 --", "it's $q$ here", "'", "$qq$'$q"] {
            let sql = format!("SELECT code, code FROM errors WHERE text = '{}'", text.replace('\'', "''"));
            let rewritten = rewrite(&sql, &PostgreSqlDialect {}).expect("it has words");
            let statements = Parser::parse_sql(&PostgreSqlDialect {}, &rewritten).expect("it is a statement");
            let mut texts = Vec::new();
            let _ = visit_expressions(&statements, |expr| {
                if let Expr::Value(value) = expr {
                    texts.push(value.value.clone().into_string());
                }
                ControlFlow::<()>::Continue(())
            });
            assert_eq!(texts, [Some(text.to_owned())], "{rewritten}");
        }
    }

    #[test]
    fn what_the_catalog_lacks_is_null() {
        let check = |sql: &str, expected: &str| {
            let statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).expect("it is a statement");
            let rewritten = rewrite_of_catalog(statements).expect("it has words");
            assert_eq!(rewritten.as_deref(), Some(expected), "{sql}");
        };
        check("SELECT pg_catalog.array_to_string(c.relacl, ',')", "SELECT CAST(NULL AS TEXT)");
        check("SELECT ARRAY(SELECT r.rolname FROM pg_roles r)", "SELECT CAST(NULL AS TEXT)");
        check("SELECT (information_schema._pg_expandarray(i.indkey)).n", "SELECT CAST(NULL AS INTEGER)");
        check("SELECT 1 WHERE a.attnum = con.conkey[pos.n]", "SELECT 1 WHERE a.attnum = CAST(NULL AS INTEGER)");
        check("SELECT typinput = 'pg_catalog.array_in'::regproc", "SELECT typinput = 'array_in'");
        check(
            "SELECT 1 WHERE (SELECT c.relkind = 'c' FROM pg_class c WHERE c.oid = 1)",
            "SELECT 1 WHERE (SELECT max(c.relkind = 'c') FROM pg_class c WHERE c.oid = 1)",
        );
    }

    #[test]
    fn what_has_no_words_is_refused_by_name() {
        check(
            "SELECT * FROM errors TABLESAMPLE BERNOULLI (10)",
            "TABLESAMPLE is not supported; ask with ORDER BY random() LIMIT n",
        );
        check(
            "SELECT a SIMILAR TO b",
            "SIMILAR TO takes a text that is written out; ask with ~ and a regular expression",
        );
        let refusal = rewrite("SELECT to_char(ts, 'Q')", &PostgreSqlDialect {}).expect_err("it has no words");
        assert!(refusal.to_string().starts_with("to_char does not know the pattern \"Q\""), "{refusal}");
    }
}
