//! Rewrites PostgreSQL syntax that DataFusion reads differently or rejects. What cannot be rewritten is refused with an
//! error that names it.
//!
//! | PostgreSQL | meaning in DataFusion | rewritten to |
//! |---|---|---|
//! | `SELECT code, code` | an error | columns with distinct names; results show the original names |
//! | `x SIMILAR TO 'a%'` | a search for a regular expression | a match of the whole text |
//! | `ts AT TIME ZONE 'Europe/Berlin'` | an instant | `at_time_zone(…)`: the local time |
//! | `to_char(ts, 'YYYY-MM')` | the text `YYYY-MM` | `to_char(ts, '%Y-%m')` |
//! | `labels ->> 'site'` | an error | `label_value(labels, 'site')` |
//! | `ARRAY(SELECT …)` | an unknown function | a query with `array_agg` |
//! | `FROM errors TABLESAMPLE …` | all rows | refused |
//!
//! A statement without any of these is not changed.

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

use crate::error::QueryError;

/// Separates the name of a duplicate column from its number.
const DUPLICATE: char = '\u{2}';

/// A column's name as the user wrote it.
pub(crate) fn name_as_written(name: &str) -> &str {
    name.split(DUPLICATE).next().unwrap_or(name)
}

/// Rewrites statements for DataFusion.
pub(crate) fn rewrite<'s>(sql: &'s str, dialect: &dyn Dialect) -> Result<Cow<'s, str>, QueryError> {
    // DataFusion reports syntax errors.
    let Ok(statements) = Parser::parse_sql(dialect, sql) else { return Ok(Cow::Borrowed(sql)) };
    Ok(rewrite_statements(statements, &mut Rewriter::default())?.map_or(Cow::Borrowed(sql), Cow::Owned))
}

/// Rewrites queries of tools to PostgreSQL's catalog: what this catalog does not have is null.
pub(crate) fn rewrite_of_catalog(statements: Vec<Statement>) -> Result<Option<String>, QueryError> {
    rewrite_statements(statements, &mut Rewriter { of_catalog: true, ..Rewriter::default() })
}

/// `None` if nothing changes.
fn rewrite_statements(mut statements: Vec<Statement>, rewriter: &mut Rewriter) -> Result<Option<String>, QueryError> {
    for statement in &mut statements {
        if let ControlFlow::Break(refused) = statement.visit(rewriter) {
            return Err(*refused);
        }
        if let Statement::Query(query) = statement {
            rewriter.changed |= rename_duplicates(query);
        }
    }
    let texts = || statements.into_iter().map(printed).collect::<Vec<_>>().join("; ");
    Ok(rewriter.changed.then(texts))
}

/// A statement or query as SQL text with the same meaning.
pub(crate) fn printed(mut tree: impl VisitMut + ToString) -> String {
    let _ = tree.visit(&mut DollarQuotes);
    tree.to_string()
}

/// Writes texts that contain quotes as dollar-quoted strings: when `sqlparser` prints them between quotes, it guesses
/// which quotes are doubled already, and ends `a\'b` too early.
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

/// Gives columns with the same name distinct names.
fn rename_duplicates(query: &mut Query) -> bool {
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
                        // DataFusion gives all of these the same name.
                        let alias = Ident::with_quote('"', expr.to_string().to_lowercase());
                        *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
                        changed = true;
                        continue;
                    }
                    let count = seen.entry(expr.to_string()).or_default();
                    *count += 1;
                    if *count > 1 {
                        let alias = Ident::with_quote('"', format!("{}{DUPLICATE}{count}", column_name(expr)));
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

/// The name of a column without an alias in a result.
fn column_name(expr: &Expr) -> String {
    match expr {
        Expr::Identifier(name) => name.value.clone(),
        Expr::CompoundIdentifier(names) => names.last().map_or_else(String::new, |name| name.value.clone()),
        other => other.to_string(),
    }
}

#[derive(Default)]
struct Rewriter {
    changed: bool,
    /// Whether the statements query PostgreSQL's catalog.
    of_catalog: bool,
}

type Refused = Box<QueryError>;

fn refused(what: impl Into<String>) -> ControlFlow<Refused> {
    ControlFlow::Break(Box::new(QueryError::Unsupported(what.into())))
}

impl VisitorMut for Rewriter {
    type Break = Refused;

    fn pre_visit_table_factor(&mut self, table: &mut TableFactor) -> ControlFlow<Refused> {
        match table {
            TableFactor::Table { sample: Some(_), .. } | TableFactor::Derived { sample: Some(_), .. } => {
                refused("TABLESAMPLE is not supported; use ORDER BY random() LIMIT n")
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
            let derived = |subquery| TableFactor::Derived { lateral: false, subquery, alias, sample: None };
            if let Some(replacement) = settings().map(derived) {
                *table = replacement;
                self.changed = true;
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Refused> {
        let replacement = match expr {
            Expr::SimilarTo { negated, expr, pattern, escape_char: None } => {
                let Some(pattern) = text_of(pattern) else {
                    return refused("SIMILAR TO needs a literal pattern; use ~ with a regular expression instead");
                };
                let Some(regex) = similar(pattern) else {
                    return refused(format!(
                        "{pattern:?} is not a valid SIMILAR TO pattern; use ~ with a regular expression instead"
                    ));
                };
                let matches = call("regexp_like", vec![(**expr).clone(), text(&regex)]);
                if *negated { Expr::Nested(Box::new(not(matches))) } else { matches }
            }
            Expr::SimilarTo { .. } => return refused("SIMILAR TO … ESCAPE is not supported; use ~ instead"),
            Expr::AtTimeZone { timestamp, time_zone } => {
                call("at_time_zone", vec![(**timestamp).clone(), (**time_zone).clone()])
            }
            _ if self.of_catalog && is_access(expr) => no_text(),
            Expr::Subquery(query) if self.of_catalog && reads_empty_table(query) => null_with_parameters(query),
            Expr::Subquery(query) if self.of_catalog => match aggregated(query) {
                Some(query) => Expr::Subquery(query),
                None => return ControlFlow::Continue(()),
            },
            Expr::Like { negated, any: false, expr, pattern, escape_char: Some(escape) }
                if escape.to_string() != "'\\'" =>
            {
                let Value::SingleQuotedString(escape) = &escape.value else { return ControlFlow::Continue(()) };
                // The only escape character of DataFusion is the backslash.
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
            Expr::Function(function) => match rewrite_function(function, self.of_catalog) {
                Ok(Some(replacement)) => replacement,
                Ok(None) => return ControlFlow::Continue(()),
                Err(what) => return refused(what),
            },
            _ => return ControlFlow::Continue(()),
        };
        *expr = replacement;
        self.changed = true;
        ControlFlow::Continue(())
    }
}

/// The rows of `pg_settings`: those of the crate, and the maximum number of columns in an index, which JDBC reads.
fn settings() -> Option<Box<Query>> {
    const SETTINGS: &str = "SELECT * FROM pg_catalog.pg_settings UNION ALL SELECT 'max_index_keys', '32', NULL, NULL, \
                            NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL";
    let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, SETTINGS).ok()?;
    match statements.pop()? {
        Statement::Query(query) => Some(query),
        _ => None,
    }
}

/// Whether it is a column that contains the name of a type's function, where PostgreSQL has a number.
fn is_function_of_type(expr: &Expr) -> bool {
    let name = expr.to_string();
    ["typreceive", "typsend", "typinput", "typoutput"].contains(&name.rsplit('.').next().unwrap_or(&name))
}

/// The first text literal in an expression.
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

/// Whether it reads the key of an index or a constraint, of which there are none: `conkey[1]`, `(keys).n`.
fn is_of_key(expr: &Expr) -> bool {
    let Expr::CompoundFieldAccess { root, access_chain } = expr else { return false };
    let is_field = matches!(**root, Expr::Nested(_)) && matches!(access_chain[..], [AccessExpr::Dot(_)]);
    let text = expr.to_string().to_lowercase();
    is_field || ["conkey", "confkey", "indkey", "indoption"].iter().any(|key| text.contains(key))
}

/// Whether it is a column of access rights or options; none are granted or set.
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

/// A null of type text.
fn no_text() -> Expr {
    null_of(DataType::Text)
}

/// A null of type integer.
fn no_number() -> Expr {
    null_of(DataType::Integer(None))
}

fn null_of(data_type: DataType) -> Expr {
    let expr = Box::new(Expr::Value(Value::Null.into()));
    Expr::Cast { kind: CastKind::Cast, expr, data_type, array: false, format: None }
}

/// Whether a query reads a catalog table that is empty here: no column has a default, a sequence or a collation.
fn reads_empty_table(query: &Query) -> bool {
    let text = query.to_string();
    ["pg_attrdef", "pg_sequence", "pg_collation"].iter().any(|table| text.contains(table))
}

/// Null instead of a query. Its parameters remain, because parameters are numbered.
fn null_with_parameters(query: &Query) -> Expr {
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

/// A scalar subquery with its value in `max(…)`: DataFusion must see that it returns at most one row.
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

/// Rewrites a function call; `None` if nothing changes.
fn rewrite_function(function: &Function, of_catalog: bool) -> Result<Option<Expr>, String> {
    let name = function.name.to_string().to_lowercase();
    let name = name.trim_start_matches("pg_catalog.").trim_start_matches("information_schema.");
    match (name, &function.args) {
        ("array", FunctionArguments::Subquery(_)) if of_catalog => Ok(Some(no_text())),
        // Their arguments are columns of constraints and indexes, of which there are none.
        ("unnest" | "_pg_expandarray", _) if of_catalog => Ok(Some(no_number())),
        ("array_to_string", FunctionArguments::List(list)) if of_catalog => {
            let is_null = list.args.first().is_some_and(|arg| arg.to_string().contains("CAST(NULL AS TEXT)"));
            Ok(is_null.then(no_text))
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
            let mut replacement = function.clone();
            if let FunctionArguments::List(list) = &mut replacement.args {
                list.args[1] = FunctionArg::Unnamed(FunctionArgExpr::Expr(text(&format)));
            }
            Ok(Some(Expr::Function(replacement)))
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

/// A SIMILAR TO pattern as a regular expression for the whole text (PostgreSQL, 9.7.2).
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
        // Escaped, these are word boundaries.
        '<' | '>' => letter.to_string(),
        letter if letter.is_ascii_punctuation() => format!("\\{letter}"),
        letter => letter.to_string(),
    }
}

/// A `to_char` pattern for times (PostgreSQL, table 9.31) as a strftime format.
fn to_char_format(pattern: &str) -> Result<String, String> {
    /// A pattern comes before its own prefixes.
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
            "to_char does not know the pattern {pattern:?}; use YYYY, MM, DD, HH24, MI, SS, MS, US, Mon, Dy, or \
             patterns of strftime (%Y-%m-%d)"
        ))
    };
    let mut format = String::new();
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        if let Some(quoted) = rest.strip_prefix('"') {
            let Some((text, after)) = quoted.split_once('"') else { return unknown() };
            format.push_str(&text.replace('%', "%%"));
            rest = after;
        } else if let Some((known, strftime)) = PATTERNS.iter().find(|(known, _)| rest.starts_with(known)) {
            if strftime.is_empty() {
                return unknown();
            }
            format.push_str(strftime);
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
        assert_eq!(rewritten.replace(DUPLICATE, "#"), expected, "{sql}");
    }

    #[test]
    fn postgresql_syntax_is_rewritten_for_datafusion() {
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
    fn string_literals_keep_their_values() {
        for text in ["a'b", "a''b", "a\\'", "\\' OR 1=1 --", "it's $q$ here", "'", "$qq$'$q"] {
            let sql = format!("SELECT code, code FROM errors WHERE text = '{}'", text.replace('\'', "''"));
            let rewritten = rewrite(&sql, &PostgreSqlDialect {}).expect("it is supported");
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
    fn missing_catalog_data_is_null() {
        let check = |sql: &str, expected: &str| {
            let statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).expect("it is a statement");
            let rewritten = rewrite_of_catalog(statements).expect("it is supported");
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
    fn unsupported_syntax_is_refused_by_name() {
        check(
            "SELECT * FROM errors TABLESAMPLE BERNOULLI (10)",
            "TABLESAMPLE is not supported; use ORDER BY random() LIMIT n",
        );
        check("SELECT a SIMILAR TO b", "SIMILAR TO needs a literal pattern; use ~ with a regular expression instead");
        let refusal = rewrite("SELECT to_char(ts, 'Q')", &PostgreSqlDialect {}).expect_err("it is not supported");
        assert!(refusal.to_string().starts_with("to_char does not know the pattern \"Q\""), "{refusal}");
    }
}
