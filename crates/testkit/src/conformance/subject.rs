//! The spool under test, and how one case is run on it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use tidespool_core::{Locked, Spool};

use super::claims::{Claims, Needed, OnlyWhatIsClaimed};
use crate::wait::PATIENCE;

/// How the spool under test is opened. Each case gets a factory of its own: one factory is one storage.
#[async_trait]
pub trait Factory: Send + Sync {
    /// Opens the spool: empty at first, later with what was left by the one before.
    async fn open(&self) -> Result<Arc<dyn Spool>>;

    /// Deletes, empties or garbles all files that the spool can build again from its other files,
    /// by the number `how`. The spool may be running. Default: there are none.
    fn lose_index(&self, how: u8) {
        let _ = how;
    }

    /// The largest message that the spool takes, in bytes: at least 1 MiB. Small is quick: a case fills it.
    fn max_message_size(&self) -> u64 {
        2 * 1024 * 1024
    }

    /// What the spool says it does. Default = [`Claims::EVERYTHING`]; a case that needs more is
    /// [`Outcome::NotClaimed`].
    fn claims(&self) -> Claims {
        Claims::EVERYTHING
    }

    /// After which time a case is called a hang. Default = [`PATIENCE`].
    fn patience(&self) -> Duration {
        PATIENCE
    }
}

/// The spool under test.
pub struct Subject {
    factory: Box<dyn Factory>,
    spool: Option<Arc<dyn Spool>>,
    /// What the case turned out to need, and is not claimed.
    needed: Needed,
}

/// One promise, put to the proof: it panics where the promise is broken.
pub type Case = for<'a> fn(&'a mut Subject) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl Subject {
    async fn new(factory: Box<dyn Factory>, needed: Needed) -> Self {
        let mut subject = Self { factory, spool: None, needed };
        let spool = subject.factory.open().await.expect("open");
        subject.put_to_the_proof(spool);
        subject
    }

    /// Everything that goes beyond the claims is kept from a spool that does not claim everything.
    fn put_to_the_proof(&mut self, spool: Arc<dyn Spool>) {
        let claims = self.factory.claims();
        self.spool = Some(if claims == Claims::EVERYTHING {
            spool
        } else {
            Arc::new(OnlyWhatIsClaimed::new(spool, claims, self.needed.clone()))
        });
    }

    /// The spool, to be called.
    pub fn spool(&self) -> &dyn Spool {
        self.spool.as_deref().expect("the spool is open")
    }

    /// The spool, to be shared with tasks.
    pub fn shared(&self) -> Arc<dyn Spool> {
        self.spool.clone().expect("the spool is open")
    }

    /// Its factory.
    pub fn factory(&self) -> &dyn Factory {
        self.factory.as_ref()
    }

    /// Shuts the spool down and opens it again.
    pub async fn reopen(&mut self) {
        self.needs_persistence();
        self.spool().shutdown().await.expect("shutdown");
        self.spool = None;
        let spool = self.factory.open().await.expect("open after an orderly shutdown");
        self.put_to_the_proof(spool);
    }

    fn needs_persistence(&self) {
        if !self.factory.claims().persists {
            panic!("{}", self.needed.note(super::Claim::Persists));
        }
    }

    /// Drops the spool without a shutdown and opens it again. Dropping does not wait for the spool's threads, so
    /// the storage may be locked for a moment.
    pub async fn drop_and_open(&mut self) {
        self.needs_persistence();
        self.spool = None;
        let started = Instant::now();
        let spool = loop {
            match self.factory.open().await {
                Err(err) if err.root_cause().is::<Locked>() && started.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                result => break result,
            }
        };
        self.put_to_the_proof(spool.expect("open after a drop"));
    }
}

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The promise holds.
    Kept,
    /// It does not: the panic's text.
    Broken(String),
    /// The case needs what the spool does not claim: nothing is proven, and nothing is broken.
    NotClaimed(super::Claim),
    /// It was not done within the factory's patience.
    Hangs,
}

/// Runs one case on a fresh spool, and panics where the promise is broken, or not claimed: a case that proves nothing
/// must not look like one that does. A spool that does not claim everything is put to the proof with [`check`].
///
/// # Panics
///
/// That is what it is for.
pub fn run(name: &str, factory: impl Factory + 'static, case: Case) {
    match check(Box::new(factory), case) {
        Outcome::Kept => {}
        Outcome::Broken(how) => panic!("{name}: {how}"),
        Outcome::NotClaimed(claim) => panic!("{name}: not claimed: {claim}"),
        Outcome::Hangs => panic!("{name}: hangs"),
    }
}

/// Runs one case on a fresh spool and tells how it ended.
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
        // Whatever the case did, the spool can still be closed.
        subject.spool().shutdown().await.expect("shutdown at the end");
    };
    let task = runtime.spawn(whole);
    let ended = runtime.block_on(async { tokio::time::timeout(patience, task).await });
    // A case that hangs may do so for good: the runtime must not wait for it.
    runtime.shutdown_background();
    let ended = ended.map_err(|_| Outcome::Hangs);
    match (ended, needed.first()) {
        (Err(hangs), _) => hangs,
        // Whatever became of a case that asked for more than is claimed, it says nothing.
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
