//! sled 0.34 alone, made durable.
//!
//! * Its `flush` writes without a sync. `fdatasync` of its file follows, through a descriptor
//!   opened before that of sled. One thread does both for all waiting callers.
//! * Above about 7 KiB a value can be stored in a file of its own, which sled neither syncs nor
//!   deletes. Therefore a larger message is split into parts of [`PART_BYTES`], each a value in a
//!   second tree; the value of the message refers to its parts. Parts are written before it and
//!   removed after it: a crash can leave orphaned parts, but never a message without its parts.
//! * It accepts changes faster than a disk writes them, and queues them in memory. Therefore a
//!   store waits for a flush after every [`FLUSH_EVERY_BYTES`].

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

use ::sled::{Config, Db, IVec, Tree};
use anyhow::{Context, Result};
use tidespool_core::{Corrupt, Locked, SpoolId};

use super::committer::{Committer, Job, Sink};
use super::error::EngineError;
use super::spool::{Backend, Held, Payload, Setup};
use super::write::id_of;

const NAME: &str = "sled";
const CACHE_BYTES: u64 = 256 << 20;
const PART_BYTES: usize = 6_656;
const FLUSH_EVERY_BYTES: usize = 8 << 20;
/// The threads of sled hold its file for a moment after it was dropped.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// The first byte of a message's value: the whole message follows, or the place of its parts.
const WHOLE: u8 = 0;
const IN_PARTS: u8 = 1;

/// The settings that matter, for reports.
pub(super) const SETTINGS: &str = "sled 0.34.7: cache 256 MiB, no compression, flush every 500 ms (its default) and 8 MiB; messages above 6.5 KiB \
     in parts; flush and fdatasync once for all waiting callers";

/// An open database. Fields are dropped in this order: the committer uses the others.
pub(crate) struct Sled {
    syncer: Committer<Flush>,
    messages: Tree,
    parts: Tree,
    db: Db,
    /// Bytes written since a caller last waited for a flush.
    written: AtomicUsize,
}

/// A caller that waits for a flush.
pub(crate) struct Flush;

impl Job for Flush {
    fn bytes(&self) -> usize {
        0
    }
}

/// The state of the committer thread.
struct Syncer {
    db: Db,
    /// Opened before the descriptor of sled, so the kernel reports every later write-back error to
    /// it.
    file: File,
}

impl Sink for Syncer {
    type Job = Flush;

    fn apply(&mut self, _batch: &[Flush], _sync: bool) -> Result<(), EngineError> {
        self.db.flush().map(drop).map_err(EngineError::at(NAME, "flushing"))
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        self.file.sync_data().map_err(EngineError::at(NAME, "syncing"))
    }
}

impl Sled {
    /// Opens the database in `dir`. Blocks.
    pub(crate) fn open(dir: &Path, setup: Setup) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let path = dir.join("db");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        let config = Config::new().path(dir).cache_capacity(setup.cache_bytes(CACHE_BYTES));
        let db = open_patiently(&config, dir)?;
        for path in [&dir.join("conf"), &dir.join("blobs"), dir] {
            match File::open(path) {
                Ok(file) => file.sync_all().with_context(|| format!("syncing {}", path.display()))?,
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => return Err(err).with_context(|| format!("opening {}", path.display())),
            }
        }
        let tree = |name| db.open_tree(name).map_err(EngineError::at(NAME, "opening"));
        let (messages, parts) = (tree("messages")?, tree("parts")?);
        let syncer = Committer::start(NAME, Syncer { db: db.clone(), file })?;
        Ok(Self { syncer, messages, parts, db, written: AtomicUsize::new(0) })
    }

    fn put(&self, id: SpoolId, data: &[u8]) -> Result<(), ::sled::Error> {
        let value = if data.len() <= PART_BYTES {
            [&[WHOLE], data].concat()
        } else {
            let place = Place { id, series: self.db.generate_id()?, len: data.len() };
            for (n, part) in data.chunks(PART_BYTES).enumerate() {
                self.parts.insert(place.part(n), part)?;
            }
            place.encode()
        };
        let replaced = self.messages.insert(id.as_bytes(), value)?;
        self.remove_parts(id, replaced)
    }

    fn delete(&self, id: SpoolId) -> Result<(), ::sled::Error> {
        let removed = self.messages.remove(id.as_bytes())?;
        self.remove_parts(id, removed)
    }

    fn remove_parts(&self, id: SpoolId, value: Option<IVec>) -> Result<(), ::sled::Error> {
        let Some(place) = value.and_then(|value| Place::decode(id, &value)) else { return Ok(()) };
        for n in 0..place.parts() {
            self.parts.remove(place.part(n))?;
        }
        Ok(())
    }

    /// Returns the message whose `value` was found under its id, or `None` if a part is missing.
    fn whole(&self, id: SpoolId, value: &[u8]) -> Result<Option<Vec<u8>>, ::sled::Error> {
        let Some(place) = Place::decode(id, value) else {
            return Ok(value.get(1..).map(<[u8]>::to_vec));
        };
        let mut data = Vec::with_capacity(place.len);
        for n in 0..place.parts() {
            let Some(part) = self.parts.get(place.part(n))? else { return Ok(None) };
            data.extend_from_slice(&part);
        }
        Ok(Some(data))
    }

    /// The parts can disappear while they are read. Then the message was replaced or removed, and
    /// its value is looked up again.
    fn get(&self, id: SpoolId) -> Result<Option<Vec<u8>>> {
        let reading = |err| EngineError::at(NAME, "reading")(err);
        let mut missing: Option<IVec> = None;
        loop {
            let Some(value) = self.messages.get(id.as_bytes()).map_err(reading)? else { return Ok(None) };
            if let Some(data) = self.whole(id, &value).map_err(reading)? {
                return Ok(Some(data));
            }
            if missing.as_ref() == Some(&value) {
                return Err(Corrupt { id, reason: "sled has lost a part of it".to_owned() }.into());
            }
            missing = Some(value);
        }
    }
}

fn open_patiently(config: &Config, dir: &Path) -> Result<Db> {
    let started = Instant::now();
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            // If another process holds the lock, sled returns an I/O error of another kind and a
            // text.
            Err(::sled::Error::Io(err)) if err.to_string().contains("lock") => {
                if started.elapsed() >= LOCK_PATIENCE {
                    return Err(Locked { path: dir.to_owned(), pid: None }.into());
                }
                thread::sleep(LOCK_RETRY);
            }
            Err(err) => return Err(EngineError::at(NAME, "opening")(err).into()),
        }
    }
}

/// The place of the parts of a message.
struct Place {
    id: SpoolId,
    /// A different number for each version, so that parts never change.
    series: u64,
    len: usize,
}

impl Place {
    fn encode(&self) -> Vec<u8> {
        [&[IN_PARTS][..], &self.series.to_be_bytes(), &(self.len as u64).to_be_bytes()].concat()
    }

    /// Returns `None` for a message that is stored whole.
    fn decode(id: SpoolId, value: &[u8]) -> Option<Self> {
        let (&IN_PARTS, rest) = value.split_first()? else { return None };
        let (series, len) = rest.split_first_chunk()?;
        let len = usize::try_from(u64::from_be_bytes(len.try_into().ok()?)).ok()?;
        Some(Self { id, series: u64::from_be_bytes(*series), len })
    }

    fn parts(&self) -> usize {
        self.len.div_ceil(PART_BYTES)
    }

    /// Returns the key of part `n`. Keys are in order, so that sled stores the parts next to each
    /// other.
    fn part(&self, n: usize) -> Vec<u8> {
        [&self.id.as_bytes()[..], &self.series.to_be_bytes(), &(n as u64).to_be_bytes()].concat()
    }
}

impl Backend for Sled {
    const NAME: &'static str = NAME;

    /// Loads on the thread of the caller: most messages are in the cache, and sled has no call to
    /// check it.
    async fn load(this: &Held<Self>, id: SpoolId) -> Result<Option<Vec<u8>>> {
        this.get(id)
    }

    async fn store(
        this: &Held<Self>,
        id: SpoolId,
        data: Payload,
        force_sync: bool,
        _deadline: Option<Instant>,
    ) -> Result<()> {
        this.put(id, &data).map_err(EngineError::at(NAME, "writing"))?;
        let written = this.written.fetch_add(data.len(), Ordering::Relaxed) + data.len();
        if force_sync || written >= FLUSH_EVERY_BYTES {
            this.written.store(0, Ordering::Relaxed);
            this.syncer.commit(Flush, force_sync, None).await?;
        }
        Ok(())
    }

    async fn remove(this: &Held<Self>, id: SpoolId) -> Result<()> {
        Ok(this.delete(id).map_err(EngineError::at(NAME, "removing"))?)
    }

    fn walk(&self, visit: &mut dyn FnMut(SpoolId, Vec<u8>) -> bool) -> Result<()> {
        for entry in &self.messages {
            let (key, value) = entry.map_err(EngineError::at(NAME, "reading"))?;
            let Some(id) = id_of(&key) else { continue };
            let data = match self.whole(id, &value).map_err(EngineError::at(NAME, "reading"))? {
                Some(data) => Some(data),
                None => self.get(id)?,
            };
            if let Some(data) = data
                && !visit(id, data)
            {
                break;
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        tokio::runtime::Handle::current().block_on(self.syncer.commit(Flush, true, None))
    }

    fn close(mut self) -> Result<()> {
        self.flush()?;
        self.syncer.stop()
    }
}
