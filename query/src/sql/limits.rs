//! Size limits for SQL functions that amplify their input.
//!
//! DataFusion's memory limit covers sorts, joins and groupings, but not the results of functions:
//! `repeat('x', 2000000000)` allocates two gigabytes unchecked. So functions whose result can be much
//! longer than their arguments are wrapped. A result that is too long is refused before it is made
//! if its size can be estimated, otherwise after.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::DFSchema;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use datafusion::sql::sqlparser::ast::BinaryOperator;

/// The maximum result of one call for one batch of rows (4 MiB): four times the text of each line.
const RESULT_BYTES_MAX: u64 = 4 << 20;

/// The maximum result of a call on constants (1 KiB): it is copied to each row of a batch.
const CONSTANT_BYTES_MAX: u64 = 1 << 10;

/// The approximate result of a call in bytes; `None` if it cannot be estimated.
type Estimate = fn(&[ColumnarValue], usize) -> Option<u64>;

/// The functions, with estimates of their result size.
const FUNCTIONS: [(&str, Estimate); 17] = [
    ("repeat", |args, rows| product(lengths(args.first()?, rows)?, &numbers(args.get(1)?, rows)?)),
    ("array_repeat", |args, rows| product(element_bytes(args.first()?, rows), &numbers(args.get(1)?, rows)?)),
    ("lpad", |args, rows| product(vec![4; rows], &numbers(args.get(1)?, rows)?)),
    ("rpad", |args, rows| product(vec![4; rows], &numbers(args.get(1)?, rows)?)),
    ("array_resize", |args, rows| {
        product(
            args.get(2).map_or_else(|| vec![16; rows], |fill| element_bytes(fill, rows)),
            &numbers(args.get(1)?, rows)?,
        )
    }),
    ("range", span),
    ("generate_series", span),
    ("replace", |args, rows| replaced(args, rows, Some(args.get(1)?))),
    ("regexp_replace", |args, rows| replaced(args, rows, None)),
    ("concat", sum),
    ("concat_ws", sum),
    ("array_concat", |_, _| None),
    ("array_append", |_, _| None),
    ("array_prepend", |_, _| None),
    ("array_to_string", |_, _| None),
    ("encode", |_, _| None),
    ("overlay", |_, _| None),
];

/// Whether a function is one of those that are limited here.
pub fn is_bounded(function: &ScalarUDF) -> bool {
    FUNCTIONS.iter().any(|(name, _)| *name == function.name())
}

/// The state with these functions limited, and `||` planned as one of them.
pub fn bounded(mut state: SessionState) -> Result<SessionState> {
    use datafusion::execution::FunctionRegistry;
    for (name, estimate) in FUNCTIONS {
        if let Ok(inner) = state.udf(name) {
            state.register_udf(Arc::new(ScalarUDF::from(Bounded { inner, estimate })))?;
        }
    }
    if let Ok(concat) = state.udf("concat") {
        state.register_expr_planner(Arc::new(ConcatOperator { concat }))?;
    }
    Ok(state)
}

/// A function whose result size is limited.
#[derive(Debug)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    estimate: Estimate,
}

impl PartialEq for Bounded {
    fn eq(&self, other: &Bounded) -> bool {
        self.inner == other.inner
    }
}

impl Eq for Bounded {}

impl std::hash::Hash for Bounded {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }

    /// Does not simplify: a simplified call would escape the limit.
    fn simplify(&self, args: Vec<Expr>, _info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        Ok(ExprSimplifyResult::Original(args))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let (rows, bytes_max) = match constant {
            true => (1, CONSTANT_BYTES_MAX),
            false => (args.number_rows, RESULT_BYTES_MAX),
        };
        let too_long = |bytes: u64| bytes > bytes_max;
        let refused = || {
            let name = self.inner.name();
            DataFusionError::ResourcesExhausted(format!("the result of {name} is longer than {bytes_max} bytes"))
        };
        if (self.estimate)(&args.args, rows).is_some_and(too_long) {
            return Err(refused());
        }
        let result = self.inner.invoke_with_args(args)?;
        let bytes = match &result {
            ColumnarValue::Array(values) => values.get_buffer_memory_size(),
            ColumnarValue::Scalar(value) => value.size(),
        };
        if too_long(bytes as u64) { Err(refused()) } else { Ok(result) }
    }
}

/// Plans `a || b` as a call of `concat` if both are texts.
#[derive(Debug)]
struct ConcatOperator {
    concat: Arc<ScalarUDF>,
}

impl ExprPlanner for ConcatOperator {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        use datafusion::logical_expr::ExprSchemable;
        let is_text = |side: &Expr| {
            let kind = side.get_type(schema);
            matches!(kind, Ok(DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View))
        };
        if expr.op != BinaryOperator::StringConcat || !is_text(&expr.left) || !is_text(&expr.right) {
            return Ok(PlannerResult::Original(expr));
        }
        // With `||`, a null makes the result null; `concat` ignores nulls.
        let sides = vec![expr.left.clone(), expr.right.clone()];
        let joined = Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&self.concat), sides));
        let both = expr.left.is_not_null().and(expr.right.is_not_null());
        datafusion::logical_expr::when(both, joined).end().map(PlannerResult::Planned)
    }
}

/// The bytes of each row's text; `None` if the values are not texts.
fn lengths(value: &ColumnarValue, rows: usize) -> Option<Vec<u64>> {
    let values = array(value, rows)?;
    let of = |index: usize, length: usize| if values.is_null(index) { 0 } else { length as u64 };
    Some(match values.data_type() {
        DataType::Utf8 => {
            let texts = values.as_string::<i32>();
            (0..rows).map(|row| of(row, texts.value_length(row) as usize)).collect()
        }
        DataType::LargeUtf8 => {
            let texts = values.as_string::<i64>();
            (0..rows).map(|row| of(row, texts.value_length(row) as usize)).collect()
        }
        DataType::Utf8View => {
            let texts = values.as_string_view();
            (0..rows).map(|row| of(row, texts.value(row).len())).collect()
        }
        _ => return None,
    })
}

fn numbers(value: &ColumnarValue, rows: usize) -> Option<Vec<i64>> {
    let values = array(value, rows)?;
    let numbers = cast_with_options(&values, &DataType::Int64, &CastOptions::default()).ok()?;
    let numbers: &Int64Array = numbers.as_primitive::<Int64Type>();
    Some(numbers.iter().map(|number| number.unwrap_or(0)).collect())
}

fn array(value: &ColumnarValue, rows: usize) -> Option<ArrayRef> {
    value.to_array(rows).ok().filter(|values| values.len() == rows)
}

fn product(lengths: Vec<u64>, times: &[i64]) -> Option<u64> {
    let each = lengths.iter().zip(times).map(|(length, times)| length.saturating_mul((*times).max(0) as u64));
    Some(each.fold(0, u64::saturating_add))
}

fn sum(args: &[ColumnarValue], rows: usize) -> Option<u64> {
    let each = args.iter().filter_map(|arg| lengths(arg, rows)).flatten();
    Some(each.fold(0, u64::saturating_add))
}

/// `replace(text, from, to)`: at worst the whole text is replaced. The length of a pattern's match is unknown.
fn replaced(args: &[ColumnarValue], rows: usize, from: Option<&ColumnarValue>) -> Option<u64> {
    let (texts, to) = (lengths(args.first()?, rows)?, lengths(args.get(2)?, rows)?);
    let from = from.and_then(|from| lengths(from, rows)).unwrap_or_else(|| vec![1; rows]);
    let each = texts.iter().zip(&to).zip(&from).map(|((text, to), from)| {
        let times = text / (*from).max(1) + 1;
        text.saturating_add(times.saturating_mul(*to))
    });
    Some(each.fold(0, u64::saturating_add))
}

/// The bytes of one value of an argument, at least its length.
fn element_bytes(value: &ColumnarValue, rows: usize) -> Vec<u64> {
    match value {
        ColumnarValue::Scalar(value) => vec![(value.size() as u64).max(16); rows],
        ColumnarValue::Array(values) => {
            lengths(value, rows).unwrap_or_else(|| vec![values.get_buffer_memory_size() as u64; rows])
        }
    }
    .into_iter()
    .map(|bytes| bytes.max(16))
    .collect()
}

/// `range(start, stop, step)`. The length of a range of times cannot be estimated, so only integers are allowed.
fn span(args: &[ColumnarValue], rows: usize) -> Option<u64> {
    if args.iter().any(|arg| !arg.data_type().is_integer() && !arg.data_type().is_null()) {
        return Some(u64::MAX);
    }
    let all: Option<Vec<Vec<i64>>> = args.iter().map(|arg| numbers(arg, rows)).collect();
    let all = all?;
    let each = (0..rows).map(|row| {
        let (start, stop, step) = match &all[..] {
            [stop] => (0, stop[row], 1),
            [start, stop] => (start[row], stop[row], 1),
            [start, stop, step, ..] => (start[row], stop[row], step[row]),
            [] => (0, 0, 1),
        };
        (start.abs_diff(stop) / step.unsigned_abs().max(1)).saturating_mul(8)
    });
    Some(each.fold(0, u64::saturating_add))
}
