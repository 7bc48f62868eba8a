//! Joins, held to the time and memory of their query.
//!
//! A join can make very many rows, or look at very many pairs, of few. The engine
//! runs through those of one batch without a look at the clock, and what takes
//! its rows goes on as long as there are some: for minutes in which nobody can
//! end the query. So joins let go of their thread now and then, and the condition
//! of one that compares each row with each looks at the clock, and whether
//! anybody still wants the answer.
//!
//! What does not fit in memory such a join reads again from the beginning, which
//! in this version of the engine dies when the side was cut in parts, and gives
//! rows twice in some outer joins. So a side that does not fit ends the query.

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

/// The consumers of memory that hold a side of such a join.
const LOAD: &str = "NestedLoopJoinLoad";

/// Why such a join has ended its query.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Held {
    #[error("the query took longer than {} ms", .0.as_millis())]
    Late(Duration),
    #[error("a side of a join that compares each row with each does not fit in memory")]
    TooLarge,
}

impl From<Held> for DataFusionError {
    fn from(held: Held) -> Self {
        DataFusionError::External(Box::new(held))
    }
}

/// What a consumer of memory hears that gets no more.
pub(crate) fn no_room(consumer: &str, why: DataFusionError) -> DataFusionError {
    // The engine takes the usual answer as a reason to begin anew.
    if consumer.starts_with(LOAD) { Held::TooLarge.into() } else { why }
}

/// When a query must have ended: at a time, or when nobody wants its answer any more. Clones are of one query.
#[derive(Debug, Clone)]
pub(crate) struct Deadline {
    until: Instant,
    time: Duration,
    unwanted: Arc<AtomicBool>,
}

impl Deadline {
    /// A time, which is so long from the beginning, and what says that the answer is wanted.
    pub(crate) fn at(until: tokio::time::Instant, time: Duration) -> (Deadline, Wanted) {
        let unwanted = Arc::default();
        (Deadline { until: until.into_std(), time, unwanted: Arc::clone(&unwanted) }, Wanted(unwanted))
    }

    fn check(&self) -> Result<()> {
        let over = Instant::now() > self.until || self.unwanted.load(Ordering::Relaxed);
        if over { Err(Held::Late(self.time).into()) } else { Ok(()) }
    }
}

/// Held by whoever wants an answer.
#[derive(Debug)]
pub(crate) struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Holds the joins of a plan.
#[derive(Debug)]
pub(crate) struct HoldJoins(pub(crate) Option<Deadline>);

impl HoldJoins {
    fn hold(&self, join: &NestedLoopJoinExec) -> Result<Arc<dyn ExecutionPlan>> {
        let filter = join.filter().map(|filter| match &self.0 {
            Some(deadline) => {
                let condition = OnTime { condition: Arc::clone(filter.expression()), deadline: deadline.clone() };
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

impl PhysicalOptimizerRule for HoldJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let hold = |node: Arc<dyn ExecutionPlan>| {
            let held = match node.downcast_ref::<NestedLoopJoinExec>() {
                Some(join) => self.hold(join)?,
                None if node.name().ends_with("JoinExec") || node.name() == "UnnestExec" => node,
                None => return Ok(Transformed::no(node)),
            };
            Ok(Transformed::yes(Arc::new(CooperativeExec::new(held)) as Arc<dyn ExecutionPlan>))
        };
        plan.transform_up(hold).data()
    }

    fn name(&self) -> &str {
        "hold_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The side that is held in memory: whatever below it finds no memory does not begin anew.
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

/// A condition that looks at the clock whenever it is asked.
#[derive(Debug)]
struct OnTime {
    condition: Arc<dyn PhysicalExpr>,
    deadline: Deadline,
}

impl PartialEq for OnTime {
    fn eq(&self, other: &OnTime) -> bool {
        self.condition.eq(&other.condition)
    }
}

impl Eq for OnTime {}

impl Hash for OnTime {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.condition.hash(state);
    }
}

impl Display for OnTime {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.condition.fmt(f)
    }
}

impl PhysicalExpr for OnTime {
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
        Ok(Arc::new(OnTime { condition: child, deadline: self.deadline.clone() }))
    }

    fn fmt_sql(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.condition.fmt_sql(f)
    }
}
