//! What may be asked: one query, of a size that can be planned.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast::{self, SetExpr};
use datafusion::sql::sqlparser::dialect::{GenericDialect, PostgreSqlDialect};
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::bounded::is_bounded;
use crate::query_error::QueryError;

/// The longest statement (512 KiB): some thousand values in a list.
pub const STATEMENT_BYTES_MAX: usize = 512 << 10;
/// The longest text in a statement (64 KiB): it is copied to each row of a batch.
pub const TEXT_BYTES_MAX: usize = 64 << 10;
/// Words and signs in a statement, without the values of lists. Each is a step down in a tree that is walked
/// on a stack, and planning some statements takes the square of them.
pub const STATEMENT_WORDS_MAX: usize = 2_000;
/// Values in the lists of a statement (`IN (…)`), which stand beside each other.
pub const LIST_VALUES_MAX: usize = 20_000;

/// Calls of functions that make much of little ([`crate::bounded`]): what each makes of some rows stands beside the others.
pub const CALLS_MAX: usize = 64;

/// Refuses what is not exactly one query, before anything is planned.
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

/// Whether what the engine cannot read is a statement of another kind (`COPY … FROM`, `ATTACH`).
fn is_other_statement(sql: &str) -> bool {
    let read = Parser::parse_sql(&GenericDialect {}, sql).or_else(|_| Parser::parse_sql(&PostgreSqlDialect {}, sql));
    read.is_ok_and(|statements| statements.iter().any(|one| !matches!(one, ast::Statement::Query(_))))
}

/// Whether neither a query nor one that it begins with writes (`WITH x AS (INSERT …)`).
fn only_reads(query: &ast::Query) -> bool {
    let begins = query.with.iter().flat_map(|with| &with.cte_tables);
    let writes =
        matches!(*query.body, SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_));
    !writes && begins.map(|table| &table.query).all(|query| only_reads(query))
}

/// The statements of a text, one by one.
pub fn split(text: &str) -> Vec<String> {
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, text).with_unescape(false).tokenize() else {
        return vec![text.to_owned()];
    };
    let parts = tokens.split(|token| *token == Token::SemiColon);
    let parts = parts.map(|tokens| tokens.iter().map(Token::to_string).collect::<String>().trim().to_owned());
    parts.filter(|statement| !statement.is_empty()).collect()
}

/// Refuses what is too long to be read.
pub(crate) fn check_size(sql: &str) -> Result<(), QueryError> {
    if sql.len() > STATEMENT_BYTES_MAX {
        return Err(QueryError::TooLong);
    }
    let words = Tokenizer::new(&GenericDialect {}, sql).tokenize();
    // What cannot be told apart is for the parser to complain about.
    let words = words.unwrap_or_default();
    let words: Vec<&Token> = words.iter().filter(|word| !matches!(word, Token::Whitespace(_))).collect();
    let is_long = |word: &&Token| match word {
        Token::SingleQuotedString(text) => text.len() > TEXT_BYTES_MAX,
        Token::DollarQuotedString(text) => text.value.len() > TEXT_BYTES_MAX,
        _ => false,
    };
    let in_lists = values_of_lists(&words);
    let too_long = words.iter().any(is_long)
        || in_lists > LIST_VALUES_MAX
        || words.len() - (2 * in_lists).min(words.len()) > STATEMENT_WORDS_MAX;
    if too_long { Err(QueryError::TooLong) } else { Ok(()) }
}

/// Values in brackets that hold values and commas, and nothing else; each counts with the sign behind it.
fn values_of_lists(words: &[&Token]) -> usize {
    let is_value =
        |word: &Token| matches!(word, Token::SingleQuotedString(_) | Token::Number(..) | Token::Placeholder(_));
    let (mut all, mut index) = (0, 0);
    while index < words.len() {
        index += 1;
        if *words[index - 1] != Token::LParen {
            continue;
        }
        let (mut values, mut at) = (0, index);
        while at + 1 < words.len() && is_value(words[at]) {
            values += 1;
            match words[at + 1] {
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

/// Refuses a plan that does anything but read, or could make more at once than a query may take.
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

/// Shows each expression of a plan, and of what it selects from, until one is enough; says whether all could be shown.
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

/// Whether the same epoch always gives the same rows: nothing asks for the time, or for chance.
pub(crate) fn is_repeatable(plan: &LogicalPlan) -> bool {
    let mut repeatable = true;
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
