//! Which statements are allowed: one query, small enough to be planned.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast::{self, SetExpr};
use datafusion::sql::sqlparser::dialect::{GenericDialect, PostgreSqlDialect};
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::error::QueryError;
use crate::sql::limits::is_bounded;
use crate::sql::statement_limits::{
    CALLS_MAX, LIST_VALUES_MAX, STATEMENT_BYTES_MAX, STATEMENT_TOKENS_MAX, TEXT_BYTES_MAX,
};
use crate::tables::catalog::CATALOG_TABLE;

/// Refuses everything but exactly one query, before planning.
pub(crate) fn check_statement(sql: &str) -> Result<(), QueryError> {
    check_size(sql)?;
    let statements = DFParser::parse_sql(sql).map_err(|error| match is_other_statement(sql) {
        true => QueryError::NotAQuery,
        false => QueryError::of(error),
    })?;
    let mut statements = statements.into_iter();
    match (statements.next(), statements.next()) {
        (Some(Statement::Statement(statement)), None) => match *statement {
            ast::Statement::Query(query) if only_reads(&query) => Ok(()),
            _ => Err(QueryError::NotAQuery),
        },
        _ => Err(QueryError::NotAQuery),
    }
}

/// Whether a text that DataFusion cannot parse is a statement of another kind (`COPY … FROM`, `ATTACH`).
fn is_other_statement(sql: &str) -> bool {
    let read = Parser::parse_sql(&GenericDialect {}, sql).or_else(|_| Parser::parse_sql(&PostgreSqlDialect {}, sql));
    read.is_ok_and(|statements| statements.iter().any(|one| !matches!(one, ast::Statement::Query(_))))
}

/// Whether neither a query nor its common table expressions write (`WITH x AS (INSERT …)`).
fn only_reads(query: &ast::Query) -> bool {
    let begins = query.with.iter().flat_map(|with| &with.cte_tables);
    let writes =
        matches!(*query.body, SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_));
    !writes && begins.map(|table| &table.query).all(|query| only_reads(query))
}

/// Splits a text into its statements.
pub fn split(text: &str) -> Vec<String> {
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, text).with_unescape(false).tokenize() else {
        return vec![text.to_owned()];
    };
    let parts = tokens.split(|token| *token == Token::SemiColon);
    let parts = parts.map(|tokens| tokens.iter().map(Token::to_string).collect::<String>().trim().to_owned());
    parts.filter(|statement| !statement.is_empty()).collect()
}

/// Refuses statements that are too long to be parsed.
pub(crate) fn check_size(sql: &str) -> Result<(), QueryError> {
    if sql.len() > STATEMENT_BYTES_MAX {
        return Err(QueryError::TooLong);
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize();
    // The parser reports a text that cannot be tokenized.
    let tokens = tokens.unwrap_or_default();
    let tokens: Vec<&Token> = tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_))).collect();
    let is_long = |token: &&Token| match token {
        Token::SingleQuotedString(text) => text.len() > TEXT_BYTES_MAX,
        Token::DollarQuotedString(text) => text.value.len() > TEXT_BYTES_MAX,
        _ => false,
    };
    let in_lists = values_of_lists(&tokens);
    let too_long = tokens.iter().any(is_long)
        || in_lists > LIST_VALUES_MAX
        || tokens.len() - (2 * in_lists).min(tokens.len()) > STATEMENT_TOKENS_MAX;
    if too_long { Err(QueryError::TooLong) } else { Ok(()) }
}

/// Values in parentheses that contain only values and commas; each counts with the token after it.
fn values_of_lists(tokens: &[&Token]) -> usize {
    let is_value =
        |token: &Token| matches!(token, Token::SingleQuotedString(_) | Token::Number(..) | Token::Placeholder(_));
    let (mut all, mut index) = (0, 0);
    while index < tokens.len() {
        index += 1;
        if *tokens[index - 1] != Token::LParen {
            continue;
        }
        let (mut values, mut at) = (0, index);
        while at + 1 < tokens.len() && is_value(tokens[at]) {
            values += 1;
            match tokens[at + 1] {
                Token::Comma => at += 2,
                Token::RParen => {
                    all += values;
                    index = at + 2;
                    break;
                }
                _ => break,
            }
        }
    }
    all
}

/// Refuses a plan that does anything but read, or that calls too many functions that amplify their input.
pub(crate) fn check_plan(plan: &LogicalPlan) -> Result<(), QueryError> {
    let nothing_else = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    nothing_else.verify_plan(plan).map_err(|_| QueryError::NotAQuery)?;
    let mut calls = 0;
    let counted = each_expression(plan, |expression| {
        calls += usize::from(matches!(expression, Expr::ScalarFunction(call) if is_bounded(&call.func)));
        calls <= CALLS_MAX
    });
    if counted && calls <= CALLS_MAX { Ok(()) } else { Err(QueryError::TooManyCalls) }
}

/// Visits each expression of a plan and its subqueries until `goes_on` returns false. Returns false if the walk failed.
fn each_expression(plan: &LogicalPlan, mut goes_on: impl FnMut(&Expr) -> bool) -> bool {
    let walked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|part| match goes_on(part) {
                true => Ok(TreeNodeRecursion::Continue),
                false => Ok(TreeNodeRecursion::Stop),
            })
        })
    });
    walked.is_ok()
}

/// Whether the same epoch always gives the same rows: the plan reads neither the time nor random values, nor the catalogue,
/// which has no epochs.
pub(crate) fn is_repeatable(plan: &LogicalPlan) -> bool {
    let mut repeatable = true;
    let walked = plan.apply_with_subqueries(|node| {
        repeatable &= !matches!(node, LogicalPlan::TableScan(scan) if scan.table_name.table() == CATALOG_TABLE);
        Ok(TreeNodeRecursion::Continue)
    });
    repeatable &= walked.is_ok();
    let all = each_expression(plan, |expression| {
        repeatable &= match expression {
            Expr::ScalarFunction(call) => call.func.signature().volatility == Volatility::Immutable,
            Expr::ScalarVariable(..) => false,
            _ => true,
        };
        repeatable
    });
    repeatable && all
}
