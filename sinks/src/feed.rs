//! The steps of the lake, for replicas of it in other processes.
//!
//! A replica begins with the tables at the versions of the last commit, and then follows step by step: each closed epoch
//! with its occurrences, and each change of the tables. The feed has the steps since the last commit, and for followers
//! that are behind, some before it. One that is further behind has to begin anew.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use argus_dataflow::ClosedEpoch;
use arrow::array::RecordBatch;
use tokio::sync::watch;

use crate::lake::LakeState;
use crate::snapshot::{DataFile, Lease};

mod codec;

pub use codec::{FrameError, decode, encode};

/// Steps before the last commit are kept for followers that are behind, up to this many, and up to this many bytes (16 MiB).
const STEPS_KEPT: usize = 4096;
const BYTES_KEPT: usize = 16 << 20;

/// The approximate bytes of a row of an epoch.
const ROW_BYTES: usize = 512;

/// The tables that readers see, without the steps after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Base {
    /// The last committed epoch, and the versions of the tables.
    pub lake: LakeState,
    /// The oldest epoch that can be queried.
    pub since: u64,
}

/// A step of the lake.
#[derive(Debug, Clone)]
pub enum Step {
    /// An epoch is closed.
    Closed(Closed),
    /// The rows so far are being committed.
    Frozen,
    /// The tables have other versions. `replaced`: some of the files before were replaced.
    Committed {
        /// The tables.
        base: Base,
        /// Whether readers of earlier versions need files that will be deleted.
        replaced: bool,
    },
}

/// A closed epoch with the occurrences of the files that it admits.
#[derive(Debug, Clone)]
pub struct Closed {
    /// Its rows.
    pub epoch: ClosedEpoch,
    /// Occurrences in memory.
    pub occurrences: Vec<RecordBatch>,
    /// Files of occurrences that are written, and not committed.
    pub files: Vec<DataFile>,
    /// The tables that contain the epoch already, in the order of [`crate::schema::Table::ALL`].
    pub present: [bool; 5],
}

/// The steps of a lake. Clones share them.
#[derive(Debug, Clone)]
pub struct Feed {
    steps: Arc<Mutex<Steps>>,
    /// The number of the next step.
    next: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Steps {
    base: Base,
    /// The first step that is not in the tables of `base`.
    first_after_base: u64,
    /// After the last step that froze rows.
    first_after_freeze: u64,
    /// The last closed epoch.
    last_closed: u64,
    /// The number of the first of `steps`.
    first: u64,
    steps: VecDeque<Arc<Step>>,
    /// The approximate bytes of `steps`.
    bytes: usize,
    /// The next step of each follower.
    positions: HashMap<u64, u64>,
    next_id: u64,
    /// For each replacement that some follower does not know yet its number, and the lease of the files before it.
    leases: VecDeque<(u64, Lease)>,
}

impl Steps {
    /// Drops what no follower needs any more.
    fn trim(&mut self) {
        while self.first < self.first_after_base
            && (self.positions.is_empty() || self.steps.len() > STEPS_KEPT || self.bytes > BYTES_KEPT)
        {
            let gone = self.steps.pop_front().map_or(0, |step| step.bytes());
            self.bytes = self.bytes.saturating_sub(gone);
            self.first += 1;
        }
        let least = self.positions.values().min().copied().unwrap_or(u64::MAX);
        while self.leases.pop_front_if(|(number, _)| *number < least).is_some() {}
    }
}

impl Step {
    fn bytes(&self) -> usize {
        match self {
            Step::Closed(Closed { epoch, occurrences, .. }) => {
                let occurrences: usize = occurrences.iter().map(RecordBatch::get_array_memory_size).sum();
                ROW_BYTES * (1 + epoch.rows.len()) + occurrences
            }
            Step::Frozen | Step::Committed { .. } => ROW_BYTES,
        }
    }
}

/// Follows a feed.
#[derive(Debug)]
pub struct Following {
    steps: Arc<Mutex<Steps>>,
    id: u64,
    position: u64,
    next: watch::Receiver<u64>,
}

/// The follower was so far behind that the feed no longer has its next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the replica was too far behind the lake; it has to begin anew")]
pub struct Behind;

impl Feed {
    /// A feed without steps, of tables in this state.
    pub fn new(base: Base) -> Feed {
        Feed { steps: Arc::new(Mutex::new(Steps { base, ..Steps::default() })), next: watch::Sender::new(0) }
    }

    /// Follows from the last commit on.
    pub fn follow(&self) -> (Base, Following) {
        let mut steps = self.lock();
        let (id, position) = (steps.next_id, steps.first_after_base);
        steps.next_id += 1;
        steps.positions.insert(id, position);
        (steps.base, Following { steps: Arc::clone(&self.steps), id, position, next: self.next.subscribe() })
    }

    /// Adds a step. `replaced` is the lease of the files before it, if it replaces some.
    pub(crate) fn push(&self, step: Step, replaced: Option<Lease>) {
        let mut steps = self.lock();
        let number = steps.first + steps.steps.len() as u64;
        match &step {
            Step::Closed(closed) => steps.last_closed = closed.epoch.epoch,
            Step::Frozen => steps.first_after_freeze = number + 1,
            Step::Committed { base, .. } => {
                if base.lake.epoch > steps.base.lake.epoch {
                    steps.first_after_base = steps.first_after_freeze;
                }
                steps.base = *base;
                // Nothing is closed after it: a new follower needs no earlier step.
                if steps.last_closed <= base.lake.epoch {
                    steps.first_after_base = number + 1;
                }
            }
        }
        if let Some(lease) = replaced {
            steps.leases.push_back((number, lease));
        }
        steps.bytes += step.bytes();
        steps.steps.push_back(Arc::new(step));
        steps.trim();
        self.next.send_replace(number + 1);
    }

    fn lock(&self) -> MutexGuard<'_, Steps> {
        lock(&self.steps)
    }
}

fn lock(steps: &Mutex<Steps>) -> MutexGuard<'_, Steps> {
    steps.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Following {
    /// The next step; `None` when the lake has stopped. If the step replaces files, also the lease of those before it.
    pub async fn next(&mut self) -> Result<Option<(Arc<Step>, Option<Lease>)>, Behind> {
        let position = self.position;
        if self.next.wait_for(|next| *next > position).await.is_err() {
            return Ok(None);
        }
        let mut steps = lock(&self.steps);
        let index = position.checked_sub(steps.first).ok_or(Behind)?;
        let step = steps.steps.get(index as usize).cloned().ok_or(Behind)?;
        let lease = steps.leases.iter().find(|(number, _)| *number == position).map(|(_, lease)| Arc::clone(lease));
        self.position += 1;
        steps.positions.insert(self.id, self.position);
        steps.trim();
        Ok(Some((step, lease)))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut steps = lock(&self.steps);
        steps.positions.remove(&self.id);
        steps.trim();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(epoch: u64) -> Step {
        let epoch = ClosedEpoch { epoch, rows: Vec::new() };
        Step::Closed(Closed { epoch, occurrences: Vec::new(), files: Vec::new(), present: [false; 5] })
    }

    fn committed(epoch: u64) -> Step {
        let lake = LakeState { epoch, ..LakeState::default() };
        Step::Committed { base: Base { lake, since: 0 }, replaced: false }
    }

    /// The epochs that a new follower gets after its base.
    async fn epochs(feed: &Feed) -> (u64, Vec<u64>) {
        let (base, mut following) = feed.follow();
        let mut epochs = Vec::new();
        while following.position < *feed.next.borrow() {
            let (step, _) = following.next().await.expect("is there").expect("is there");
            if let Step::Closed(closed) = &*step {
                epochs.push(closed.epoch.epoch);
            }
        }
        (base.lake.epoch, epochs)
    }

    #[tokio::test]
    async fn a_new_follower_gets_every_epoch_that_the_tables_lack_once() {
        let feed = Feed::new(Base::default());
        (1..=2).for_each(|epoch| feed.push(closed(epoch), None));
        assert_eq!(epochs(&feed).await, (0, vec![1, 2]));
        feed.push(Step::Frozen, None);
        feed.push(closed(3), None);
        assert_eq!(epochs(&feed).await, (0, vec![1, 2, 3]));
        feed.push(committed(2), None);
        assert_eq!(epochs(&feed).await, (2, vec![3]));
        // Maintenance changes the tables, and commits no epoch.
        feed.push(committed(2), None);
        assert_eq!(epochs(&feed).await, (2, vec![3]));
        feed.push(closed(4), None);
        feed.push(Step::Frozen, None);
        feed.push(committed(4), None);
        assert_eq!(epochs(&feed).await, (4, vec![]));
    }

    #[tokio::test]
    async fn the_files_before_a_replacement_are_kept_until_each_follower_knows_of_it() {
        let feed = Feed::new(Base::default());
        let lease = Lease::default();
        feed.push(committed(0), Some(Arc::clone(&lease)));
        assert_eq!(Arc::strong_count(&lease), 1, "nobody follows");
        let ((_, mut fast), (_, mut slow)) = (feed.follow(), feed.follow());
        feed.push(committed(0), Some(Arc::clone(&lease)));
        let (_, held) = fast.next().await.expect("is there").expect("is there");
        assert_eq!(Arc::strong_count(&lease), 3, "the slow one needs it");
        drop(slow.next().await);
        drop(slow);
        assert_eq!(Arc::strong_count(&lease), 2);
        drop(held);
        assert_eq!(Arc::strong_count(&lease), 1);
    }

    #[tokio::test]
    async fn a_follower_that_is_too_far_behind_learns_it() {
        let feed = Feed::new(Base::default());
        let (_, mut following) = feed.follow();
        let steps = STEPS_KEPT as u64 + 10;
        (1..=steps).for_each(|epoch| feed.push(closed(epoch), None));
        assert!(following.next().await.is_ok(), "nothing is committed, so every step is needed");
        feed.push(Step::Frozen, None);
        feed.push(committed(steps), None);
        assert_eq!(following.next().await.map(drop), Err(Behind));
    }
}
