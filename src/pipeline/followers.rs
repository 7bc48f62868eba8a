//! Followers wait for changes of a batch. Only the followers of a changed batch are woken, so idle ones cost nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use uuid::Uuid;

/// The followers of all batches. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Followers {
    batches: Arc<Mutex<HashMap<Uuid, watch::Sender<()>>>>,
    all: watch::Sender<()>,
}

/// Waits for changes of one batch.
#[derive(Debug)]
pub struct Follower {
    batch_id: Uuid,
    followers: Followers,
    /// `None` only in `drop`.
    changes: Option<watch::Receiver<()>>,
}

impl Followers {
    /// Follows a batch from now on.
    pub fn follow(&self, batch_id: Uuid) -> Follower {
        let changes = self.lock().entry(batch_id).or_insert_with(|| watch::Sender::new(())).subscribe();
        Follower { batch_id, followers: self.clone(), changes: Some(changes) }
    }

    /// Follows all batches from now on.
    pub fn follow_all(&self) -> watch::Receiver<()> {
        self.all.subscribe()
    }

    /// Wakes the followers of changed batches.
    pub fn wake(&self, batches: impl IntoIterator<Item = Uuid>) {
        self.all.send_replace(());
        let followed = self.lock();
        if followed.is_empty() {
            return;
        }
        for batch_id in batches {
            if let Some(changes) = followed.get(&batch_id) {
                changes.send_replace(());
            }
        }
    }

    /// Wakes all followers: any batch may have changed.
    pub fn wake_all(&self) {
        self.all.send_replace(());
        for changes in self.lock().values() {
            changes.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, watch::Sender<()>>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower {
    /// Waits for a change since the last call, or since the follower was created.
    pub async fn changed(&mut self) {
        if let Some(changes) = &mut self.changes {
            // The sender exists as long as the batch has a follower.
            let _ = changes.changed().await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut followed = self.followers.lock();
        self.changes = None;
        if followed.get(&self.batch_id).is_some_and(|changes| changes.receiver_count() == 0) {
            followed.remove(&self.batch_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn only_the_followers_of_a_changed_batch_are_woken() {
        let followers = Followers::default();
        let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
        let (mut first, mut second) = (followers.follow(one), followers.follow(one));
        let mut idle = followers.follow(other);
        followers.wake([one]);
        assert!(first.changed().now_or_never().is_some() && second.changed().now_or_never().is_some());
        assert!(first.changed().now_or_never().is_none(), "once for one change");
        assert!(idle.changed().now_or_never().is_none());
        drop((first, second, idle));
        assert!(followers.lock().is_empty(), "no follower is left");
    }
}
