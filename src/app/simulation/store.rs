//! An object store in memory that fails and crashes as a seed says.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use super::random::Random;

/// Decides which operations fail. Clones share their state.
#[derive(Debug, Clone)]
pub(super) struct Faults {
    random: Arc<Mutex<Random>>,
    /// How many of a thousand operations fail.
    per_mille: Arc<AtomicU32>,
    crashed: Arc<AtomicBool>,
}

/// What happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It succeeds.
    None,
    /// It fails and has no effect.
    Before,
    /// It fails after it had its effect, as when the answer is lost.
    After,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Faults {
        Faults { random: Arc::new(Mutex::new(Random::new(seed))), per_mille: Arc::default(), crashed: Arc::default() }
    }

    /// From now on, `per_mille` of a thousand operations fail.
    pub(super) fn set_rate(&self, per_mille: u32) {
        self.per_mille.store(per_mille, Ordering::SeqCst);
    }

    /// From now on, no operation has an effect: the process that used the store is dead.
    pub(super) fn crash(&self) {
        self.crashed.store(true, Ordering::SeqCst);
    }

    fn next(&self) -> Result<Fault> {
        if self.crashed.load(Ordering::SeqCst) {
            return Err(failure("the process has crashed"));
        }
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let fails = random.below(1000) < self.per_mille.load(Ordering::SeqCst) as usize;
        Ok(match (fails, random.below(2)) {
            (false, _) => Fault::None,
            (true, 0) => Fault::Before,
            (true, _) => Fault::After,
        })
    }

    /// Runs an operation that changes the store.
    async fn change<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        match self.next()? {
            Fault::None => operation.await,
            Fault::Before => Err(failure("injected before the operation")),
            Fault::After => {
                operation.await?;
                Err(failure("injected after the operation"))
            }
        }
    }

    /// Whether a read may run.
    fn read(&self) -> Result<()> {
        match self.next()? {
            Fault::None => Ok(()),
            _ => Err(failure("injected")),
        }
    }
}

fn failure(reason: &'static str) -> Error {
    Error::Generic { store: "FaultyStore", source: reason.into() }
}

/// The store of one process.
#[derive(Debug)]
pub(super) struct FaultyStore {
    pub(super) inner: Arc<InMemory>,
    pub(super) faults: Faults,
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyStore")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.faults.change(self.inner.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.faults.change(self.inner.put_multipart_opts(location, options)).await?;
        Ok(Box::new(FaultyUpload { inner, faults: self.faults.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.faults.read()?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, faults) = (Arc::clone(&self.inner), self.faults.clone());
        let delete = move |location: Result<Path>| {
            let (inner, faults) = (Arc::clone(&inner), faults.clone());
            async move {
                let one = futures::stream::iter([location]).boxed();
                let mut deleted = inner.delete_stream(one);
                faults.change(async { deleted.next().await.unwrap_or(Err(failure("nothing to delete"))) }).await
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.faults.read() {
            Ok(()) => self.inner.list(prefix),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.faults.read()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.faults.change(self.inner.copy_opts(from, to, options)).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    faults: Faults,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, faults) = (self.inner.put_part(data), self.faults.clone());
        Box::pin(async move { faults.change(part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let faults = self.faults.clone();
        faults.change(self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        let faults = self.faults.clone();
        faults.change(self.inner.abort()).await
    }
}
