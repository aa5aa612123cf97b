//! The spool under test, and the functions that run one case on it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use tidespool_core::{Locked, Spool};

use crate::claims::{Claim, ClaimsFilter, Needed};
use crate::wait::PATIENCE;

/// Opens the spool under test. Each case gets its own factory, and each factory has its own
/// storage.
#[async_trait]
pub trait Factory: Send + Sync {
    /// Opens the spool: empty the first time, later with what the previous spool left.
    async fn open(&self) -> Result<Arc<dyn Spool>>;

    /// Deletes, empties or corrupts all files that the spool can rebuild from its other files.
    /// `how` selects the damage. The spool may be running. Only [`model`](crate::model) calls this.
    /// The default does nothing.
    fn lose_index(&self, how: u8) {
        let _ = how;
    }

    /// The size limit of a message, in bytes: at least 1 MiB. One case stores a message of this
    /// size, so a small limit is faster.
    fn max_message_size(&self) -> u64 {
        2 * 1024 * 1024
    }

    /// What the spool does not claim to support. Default = nothing. The outcome of a case that
    /// needs it is [`Outcome::NotClaimed`].
    fn unclaimed(&self) -> Vec<Claim> {
        Vec::new()
    }

    /// How long a case may run before it counts as hanging. Default = [`PATIENCE`].
    fn patience(&self) -> Duration {
        PATIENCE
    }
}

/// The spool under test.
pub struct Subject {
    factory: Box<dyn Factory>,
    spool: Option<Arc<dyn Spool>>,
    /// The first claim that the case needs and the spool does not make.
    needed: Needed,
}

/// A test of one promise: it panics if the promise is broken.
pub type Case = for<'a> fn(&'a mut Subject) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl Subject {
    async fn new(factory: Box<dyn Factory>, needed: Needed) -> Self {
        let mut subject = Self { factory, spool: None, needed };
        let spool = subject.factory.open().await.expect("open");
        subject.install(spool);
        subject
    }

    /// Wraps a spool that does not claim everything in a filter that rejects calls beyond its
    /// claims.
    fn install(&mut self, spool: Arc<dyn Spool>) {
        let unclaimed = self.factory.unclaimed();
        self.spool = Some(if unclaimed.is_empty() {
            spool
        } else {
            Arc::new(ClaimsFilter::new(spool, unclaimed, self.needed.clone()))
        });
    }

    /// Returns the spool, to be called.
    ///
    /// # Panics
    ///
    /// If it is not open, because an earlier opening failed.
    pub fn spool(&self) -> &dyn Spool {
        self.spool.as_deref().expect("the spool is open")
    }

    /// Returns the spool, to be shared with tasks.
    ///
    /// # Panics
    ///
    /// If it is not open, because an earlier opening failed.
    pub fn shared(&self) -> Arc<dyn Spool> {
        self.spool.clone().expect("the spool is open")
    }

    /// Returns the factory of the spool.
    pub fn factory(&self) -> &dyn Factory {
        self.factory.as_ref()
    }

    /// Shuts the spool down and opens it again.
    ///
    /// # Panics
    ///
    /// If either fails, or if the spool does not claim that messages outlive it.
    pub async fn reopen(&mut self) {
        self.needs_persistence();
        self.spool().shutdown().await.expect("shutdown");
        self.spool = None;
        let spool = self.factory.open().await.expect("open after an orderly shutdown");
        self.install(spool);
    }

    fn needs_persistence(&self) {
        if self.factory.unclaimed().contains(&Claim::Persists) {
            panic!("{}", self.needed.note(Claim::Persists));
        }
    }

    /// Drops the spool without a shutdown and opens it again.
    ///
    /// # Panics
    ///
    /// If the opening fails, or if the spool does not claim that messages outlive it.
    pub async fn drop_and_open(&mut self) {
        self.needs_persistence();
        self.spool = None;
        let spool = open_after_drop(self.factory()).await;
        self.install(spool.expect("open after a drop"));
    }
}

/// Opens a spool, and retries while the threads of a dropped spool keep its storage locked.
pub(crate) async fn open_after_drop(factory: &dyn Factory) -> Result<Arc<dyn Spool>> {
    let started = Instant::now();
    loop {
        match factory.open().await {
            Err(err) if err.root_cause().is::<Locked>() && started.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            result => return result,
        }
    }
}

/// The result of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The promise holds.
    Kept,
    /// The promise does not hold: the text of the panic.
    Broken(String),
    /// The case needs something that the spool does not claim, so it proves nothing.
    NotClaimed(Claim),
    /// The case did not end within the factory's patience.
    Hangs,
}

/// Runs one case on a fresh spool. For a spool that does not claim everything, use [`check`].
///
/// # Panics
///
/// If the promise is broken, or if the case needs something that the spool does not claim. A case
/// that proves nothing must not pass.
pub fn run(name: &str, factory: impl Factory + 'static, case: Case) {
    match check(Box::new(factory), case) {
        Outcome::Kept => {}
        Outcome::Broken(how) => panic!("{name}: {how}"),
        Outcome::NotClaimed(claim) => panic!("{name}: not claimed: {claim}"),
        Outcome::Hangs => panic!("{name}: hangs"),
    }
}

/// Runs one case on a fresh spool and returns the outcome.
///
/// # Panics
///
/// If the threads of a runtime cannot be started.
#[must_use]
pub fn check(factory: Box<dyn Factory>, case: Case) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let patience = factory.patience();
    let needed = Needed::default();
    let noted = needed.clone();
    let whole = async move {
        let mut subject = Subject::new(factory, noted).await;
        case(&mut subject).await;
        // Whatever the case did, a shutdown must succeed.
        subject.spool().shutdown().await.expect("shutdown at the end");
    };
    let task = runtime.spawn(whole);
    let ended = runtime.block_on(async { tokio::time::timeout(patience, task).await });
    // The runtime must not wait for a case that hangs: it may never end.
    runtime.shutdown_background();
    let ended = ended.map_err(|_| Outcome::Hangs);
    match (ended, needed.first()) {
        (Err(hangs), _) => hangs,
        // A case that needed an unclaimed feature proves nothing, whether it passed or failed.
        (_, Some(claim)) => Outcome::NotClaimed(claim),
        (Ok(Ok(())), None) => Outcome::Kept,
        (Ok(Err(err)), None) => Outcome::Broken(panic_text(err)),
    }
}

fn panic_text(err: tokio::task::JoinError) -> String {
    let panic = err.into_panic();
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}
