//! Time and memory limits for joins.
//!
//! A join can produce very many rows, or compare very many pairs, from a small input. DataFusion
//! processes those of one batch without checking the time, and the consumer polls as long as there
//! are rows: for minutes in which the query cannot be cancelled. So joins yield their thread
//! regularly, and the condition of a nested loop join checks the deadline and whether the result is
//! still wanted.
//!
//! If a side of a nested loop join does not fit in memory, DataFusion reads the side again from the
//! beginning. In this version that crashes if the side was partitioned, and returns rows twice in
//! some outer joins. So such a query fails.

use std::fmt::{self, Display, Formatter};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::datatypes::{FieldRef, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::joins::NestedLoopJoinExec;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream,
};
use futures::StreamExt;

/// The memory consumers of the loaded side of a nested loop join.
const LOAD: &str = "NestedLoopJoinLoad";

/// Why a nested loop join ended its query.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Held {
    #[error("the query took longer than {} ms", .0.as_millis())]
    Late(Duration),
    #[error("a side of a nested loop join does not fit in memory")]
    TooLarge,
}

impl From<Held> for DataFusionError {
    fn from(held: Held) -> Self {
        DataFusionError::External(Box::new(held))
    }
}

/// The error for a memory consumer that gets no more memory.
pub(crate) fn no_room(consumer: &str, why: DataFusionError) -> DataFusionError {
    // The usual error would make DataFusion start the join again.
    if consumer.starts_with(LOAD) { Held::TooLarge.into() } else { why }
}

/// When a query must end: at a time, or when its result is no longer wanted. Clones belong to one query.
#[derive(Debug, Clone)]
pub(crate) struct Deadline {
    until: Instant,
    time: Duration,
    unwanted: Arc<AtomicBool>,
}

impl Deadline {
    /// A deadline at `until`, which is `time` after the start; and the guard to hold while the result is wanted.
    pub(crate) fn at(until: tokio::time::Instant, time: Duration) -> (Deadline, Wanted) {
        let unwanted = Arc::default();
        (Deadline { until: until.into_std(), time, unwanted: Arc::clone(&unwanted) }, Wanted(unwanted))
    }

    fn check(&self) -> Result<()> {
        let over = Instant::now() > self.until || self.unwanted.load(Ordering::Relaxed);
        if over { Err(Held::Late(self.time).into()) } else { Ok(()) }
    }
}

/// A guard that is held while the result of a query is wanted; dropping it ends the query.
#[derive(Debug)]
pub(crate) struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Limits the joins of a plan.
#[derive(Debug)]
pub(crate) struct LimitJoins(pub(crate) Option<Deadline>);

impl LimitJoins {
    fn limit(&self, join: &NestedLoopJoinExec) -> Result<Arc<dyn ExecutionPlan>> {
        let filter = join.filter().map(|filter| match &self.0 {
            Some(deadline) => {
                let condition = DeadlineExpr { condition: Arc::clone(filter.expression()), deadline: deadline.clone() };
                let columns = filter.column_indices().to_vec();
                JoinFilter::new(Arc::new(condition), columns, Arc::clone(filter.schema()))
            }
            None => filter.clone(),
        });
        let side = Arc::new(Side(Arc::clone(join.left())));
        let projection = join.projection().as_ref().map(|columns| columns.to_vec());
        let right = Arc::clone(join.right());
        Ok(Arc::new(NestedLoopJoinExec::try_new(side, right, filter, join.join_type(), projection)?))
    }
}

impl PhysicalOptimizerRule for LimitJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let limit = |node: Arc<dyn ExecutionPlan>| {
            let limited = match node.downcast_ref::<NestedLoopJoinExec>() {
                Some(join) => self.limit(join)?,
                None if node.name().ends_with("JoinExec") || node.name() == "UnnestExec" => node,
                None => return Ok(Transformed::no(node)),
            };
            Ok(Transformed::yes(Arc::new(CooperativeExec::new(limited)) as Arc<dyn ExecutionPlan>))
        };
        plan.transform_up(limit).data()
    }

    fn name(&self) -> &str {
        "limit_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The side that is loaded into memory: running out of memory below it does not start the join again.
#[derive(Debug)]
struct Side(Arc<dyn ExecutionPlan>);

impl DisplayAs for Side {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Side")
    }
}

impl ExecutionPlan for Side {
    fn name(&self) -> &str {
        "Side"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.0.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.0]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let child = children.pop().ok_or_else(|| DataFusionError::Internal("a side has one child".to_owned()))?;
        Ok(Arc::new(Side(child)))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = self.0.execute(partition, context)?.map(|rows| {
            rows.map_err(|error| match error.find_root() {
                DataFusionError::ResourcesExhausted(_) => Held::TooLarge.into(),
                _ => error,
            })
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

/// A condition that checks the deadline at each evaluation.
#[derive(Debug)]
struct DeadlineExpr {
    condition: Arc<dyn PhysicalExpr>,
    deadline: Deadline,
}

impl PartialEq for DeadlineExpr {
    fn eq(&self, other: &DeadlineExpr) -> bool {
        self.condition.eq(&other.condition)
    }
}

impl Eq for DeadlineExpr {}

impl Hash for DeadlineExpr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.condition.hash(state);
    }
}

impl Display for DeadlineExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.condition.fmt(f)
    }
}

impl PhysicalExpr for DeadlineExpr {
    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        self.condition.return_field(schema)
    }

    fn evaluate(&self, rows: &RecordBatch) -> Result<ColumnarValue> {
        self.deadline.check()?;
        self.condition.evaluate(rows)
    }

    fn evaluate_selection(&self, rows: &RecordBatch, chosen: &BooleanArray) -> Result<ColumnarValue> {
        self.deadline.check()?;
        self.condition.evaluate_selection(rows, chosen)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.condition]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let child = children.pop().ok_or_else(|| DataFusionError::Internal("a condition has one part".to_owned()))?;
        Ok(Arc::new(DeadlineExpr { condition: child, deadline: self.deadline.clone() }))
    }

    fn fmt_sql(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.condition.fmt_sql(f)
    }
}
