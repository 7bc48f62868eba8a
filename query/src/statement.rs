//! What may be asked: one query, of a size that can be planned.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::engine::QueryError;

/// The longest statement (64 KiB): a text in it is copied to each row of a batch.
pub const STATEMENT_BYTES_MAX: usize = 64 << 10;
/// Words and signs in a statement. Each is a step down in a tree that is walked
/// on a stack, and planning some statements takes the square of them.
pub const STATEMENT_WORDS_MAX: usize = 2_000;

/// Refuses what is not exactly one query, before anything is planned.
pub(crate) fn check_statement(sql: &str) -> Result<(), QueryError> {
    check_size(sql)?;
    let statements = DFParser::parse_sql(sql).map_err(QueryError::of)?;
    let mut statements = statements.into_iter();
    match (statements.next(), statements.next()) {
        (Some(Statement::Statement(statement)), None) if matches!(*statement, ast::Statement::Query(_)) => Ok(()),
        _ => Err(QueryError::NotAQuery),
    }
}

/// Refuses what is too long to be read.
pub(crate) fn check_size(sql: &str) -> Result<(), QueryError> {
    if sql.len() > STATEMENT_BYTES_MAX {
        return Err(QueryError::TooLong);
    }
    let words = Tokenizer::new(&GenericDialect {}, sql).tokenize();
    // What cannot be told apart is for the parser to complain about.
    let words = words.unwrap_or_default();
    let count = words.iter().filter(|word| !matches!(word, Token::Whitespace(_))).count();
    if count > STATEMENT_WORDS_MAX { Err(QueryError::TooLong) } else { Ok(()) }
}

/// Refuses a plan that does anything but read.
pub(crate) fn check_plan(plan: &LogicalPlan) -> Result<(), QueryError> {
    let nothing_else = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    nothing_else.verify_plan(plan).map_err(|_| QueryError::NotAQuery)
}

/// Whether the same epoch always gives the same rows: nothing asks for the time, or for chance, or
/// for the tables of differences, whose rows are others after they were compacted.
pub(crate) fn is_repeatable(sql: &str, plan: &LogicalPlan) -> bool {
    let mut repeatable = !sql.to_ascii_lowercase().contains("lake");
    let of_expression = |expression: &Expr| {
        if let Expr::ScalarFunction(call) = expression
            && call.func.signature().volatility != Volatility::Immutable
        {
            return Ok(true);
        }
        Ok::<_, DataFusionError>(matches!(expression, Expr::ScalarVariable(..)))
    };
    let walked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            if expression.exists(of_expression)? {
                repeatable = false;
                return Ok(TreeNodeRecursion::Stop);
            }
            Ok(TreeNodeRecursion::Continue)
        })
    });
    repeatable && walked.is_ok()
}
