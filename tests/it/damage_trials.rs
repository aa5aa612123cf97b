//! Random damage to any file of a spool, followed by opening, verification and repair.
//!
//! Every few trials run in a process of their own, since damaged files can take down sled's I/O
//! threads for a whole process. `TIDESPOOL_DAMAGE_TRIALS` sets their number and
//! `TIDESPOOL_DAMAGE_SEED` the first seed. A seed replays its trial.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tidespool::inspect::{Damage, Inspector, Salvage, Verification, salvage};
use tidespool::{Config, RecoveryReport, TieredSpool};
use tidespool_core::{Corrupt, DamagedSpool, NotFound, Spool, SpoolEntry, SpoolId, UnsupportedFormat};
use tidespool_testkit::env::{number_from_env, seed_from_env};
use tidespool_testkit::{payload, wait};

use crate::setup::{KIB, MIB, copy_dir, enumerate, small, stop, walk};

const TRIALS_A_PROCESS: u64 = 10;
/// Far more than any call of a trial needs. sled gets 60 s for each of its calls.
const PATIENCE: Duration = Duration::from_secs(300);
const SEEDS: &str = "TIDESPOOL_DAMAGE_SEEDS";
const BASE: &str = "TIDESPOOL_DAMAGE_BASE";

fn config(path: &Path) -> Config {
    small(path).segment_size(64 * KIB).journal_capacity(2 * MIB).checkpoint_after(Duration::from_secs(3600))
}

/// The stored messages (newest version and length) and the removed ones.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Stored {
    live: BTreeMap<SpoolId, (u64, usize)>,
    removed: BTreeSet<SpoolId>,
}

impl Stored {
    /// The next id. A seed always gives the same ids.
    fn id(&self) -> SpoolId {
        let ticks = 0x01ec_9414_c232_ab00 + 1000 * (self.live.len() + self.removed.len()) as u64;
        let head = (ticks >> 12) << 16 | 0x6000 | (ticks & 0xfff);
        let mut id = [0x80; 16];
        id[..8].copy_from_slice(&head.to_be_bytes());
        SpoolId::from_bytes(id)
    }

    async fn put(&mut self, spool: &dyn Spool, id: SpoolId, version: u64, len: usize) {
        spool.store(id, payload::shared(id, version, len), true, None).await.expect("store");
        self.live.insert(id, (version, len));
    }

    async fn remove(&mut self, spool: &dyn Spool, id: SpoolId) {
        spool.remove(id).await.expect("remove");
        self.live.remove(&id);
        self.removed.insert(id);
    }

    /// Stores messages, and replaces and removes some.
    async fn work(&mut self, spool: &dyn Spool, rng: &mut SmallRng, messages: usize) {
        for _ in 0..messages {
            let len = match rng.random_range(0..4) {
                0 => rng.random_range(16..216),
                1 => rng.random_range(300..1800),
                2 => rng.random_range(2100..8100),
                _ => rng.random_range(8000..22_000),
            };
            self.put(spool, self.id(), 1, len).await;
        }
        let ids: Vec<SpoolId> = self.live.keys().copied().collect();
        for id in ids {
            match rng.random_range(0..6) {
                0 => self.remove(spool, id).await,
                1 => {
                    let (version, _) = self.live[&id];
                    let len = rng.random_range(20..9020);
                    self.put(spool, id, version + 1, len).await;
                }
                _ => {}
            }
        }
    }
}

/// Creates images of one spool: `stale` (an earlier state), `closed` (after a shutdown), `killed`
/// (after a crash), and `cleaned` (after a shutdown, with removed messages in retained segments).
/// Also writes the stored messages of the last three.
async fn make_images(base: &Path, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut stored = Stored::default();
    let dir = base.join("spool");
    fs::create_dir_all(base).unwrap();
    let mut spool = Arc::new(TieredSpool::open(config(&dir)).await.expect("open"));
    for round in 0..3 {
        stored.work(spool.as_ref(), &mut rng, 30).await;
        match round {
            0 => spool.compact().await.expect("compact"),
            _ => spool.cleanup().await.expect("cleanup"),
        }
        stop(spool).await;
        if round == 0 {
            copy_dir(&dir, &base.join("stale"));
        }
        spool = Arc::new(TieredSpool::open(config(&dir)).await.expect("open"));
    }
    spool.compact().await.expect("compact");
    stored.work(spool.as_ref(), &mut rng, 15).await;
    stop(spool).await;
    copy_dir(&dir, &base.join("closed"));
    write_stored(base, "closed", &stored);
    let spool = Arc::new(TieredSpool::open(config(&dir)).await.expect("open"));
    stored.work(spool.as_ref(), &mut rng, 15).await;
    // Removals become durable a moment later.
    wait::until("everything is durable", || spool.stats().gauges.dirty_entries == 0).await;
    copy_dir(&dir, &base.join("killed"));
    write_stored(base, "killed", &stored);
    stop(spool).await;
    // Only `cleanup` makes checkpoints here: segments then hold removed messages whose removals are
    // gone.
    let spool = TieredSpool::open(config(&dir).checkpoint_after(Duration::ZERO)).await.expect("open");
    let spool = Arc::new(spool);
    for messages in [30, 0] {
        stored.work(spool.as_ref(), &mut rng, messages).await;
        wait::until("everything is durable", || spool.stats().gauges.dirty_entries == 0).await;
        spool.cleanup().await.expect("cleanup");
    }
    stop(spool).await;
    copy_dir(&dir, &base.join("cleaned"));
    write_stored(base, "cleaned", &stored);
}

fn write_stored(base: &Path, image: &str, stored: &Stored) {
    fs::write(base.join(format!("{image}.json")), serde_json::to_string(stored).unwrap()).unwrap();
}

/// The contents of all files below `dir`.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    walk(dir)
        .into_iter()
        .map(|path| (path.clone(), path.is_file().then(|| fs::read(&path).unwrap())))
        .collect()
}

/// The files by kind: format; manifest and liveness log; segments; sled's data; sled's other files.
fn files(dir: &Path) -> [Vec<PathBuf>; 5] {
    let below = |dir: PathBuf| -> Vec<PathBuf> {
        let mut files: Vec<_> = walk(&dir).into_iter().filter(|path| path.is_file()).collect();
        files.sort();
        files
    };
    let (db, others) = below(dir.join("sled")).into_iter().partition(|path| path.ends_with("db"));
    let is_log = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("liveness.");
    let logs = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(is_log);
    let lists = [dir.join("manifest")].into_iter().chain(logs).collect();
    [vec![dir.join("FORMAT")], lists, below(dir.join("journal")), db, others]
}

/// Damages one file. Returns its name and a description.
fn damage(dir: &Path, stale: &Path, rng: &mut SmallRng) -> (PathBuf, String) {
    let kinds = files(dir);
    let pick = |rng: &mut SmallRng, from: &[PathBuf]| from[rng.random_range(0..from.len())].clone();
    let kind = [0, 1, 1, 2, 2, 2, 3, 4][rng.random_range(0..8)];
    let path = pick(rng, &kinds[kind]);
    let name = path.strip_prefix(dir).unwrap().to_owned();
    let shown = name.display();
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    let at = rng.random_range(0..len.max(1));
    let how = match rng.random_range(0..9) {
        what @ (0 | 1) if len > 0 => {
            let flips = if what == 0 { 1 } else { rng.random_range(2..102) };
            for _ in 0..flips {
                let (at, mut byte) = (rng.random_range(0..len), [0]);
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ (1 << rng.random_range(0..8))], at).unwrap();
            }
            format!("{flips} bits flipped in {shown}")
        }
        2 if len > 0 => {
            let (from, count) = (at / 4096 * 4096, 4096 * rng.random_range(1..4));
            let count = count.min(len - from);
            file.write_all_at(&vec![0; usize::try_from(count).unwrap()], from).unwrap();
            format!("{count} bytes of {shown} zeroed from {from}")
        }
        3 => {
            file.set_len(at).unwrap();
            format!("{shown} of {len} bytes cut at {at}")
        }
        4 => {
            file.set_len(0).unwrap();
            format!("{shown} emptied")
        }
        5 => {
            let all: Vec<PathBuf> = kinds.iter().flatten().filter(|other| **other != path).cloned().collect();
            let other = pick(rng, &all);
            let (one, two) = (fs::read(&path).unwrap(), fs::read(&other).unwrap());
            fs::write(&path, two).unwrap();
            fs::write(&other, one).unwrap();
            format!("{shown} and {} swapped", other.strip_prefix(dir).unwrap().display())
        }
        6 if stale.join(&name).is_file() => {
            fs::copy(stale.join(&name), &path).unwrap();
            format!("{shown} from an earlier state")
        }
        7 => {
            let mut garbage = vec![0; rng.random_range(1..=20_000)];
            rng.fill(&mut garbage[..]);
            file.write_all_at(&garbage, at).unwrap();
            format!("{} bytes of garbage in {shown} at {at}", garbage.len())
        }
        _ => {
            fs::remove_file(&path).unwrap();
            format!("{shown} deleted")
        }
    };
    (name, how)
}

/// The messages that were found.
#[derive(Debug, Default)]
struct Account {
    /// Messages found in their newest version.
    whole: BTreeSet<SpoolId>,
    damaged: BTreeSet<SpoolId>,
    missing: BTreeSet<SpoolId>,
    older: BTreeSet<SpoolId>,
    /// Removed messages that were found.
    back: BTreeSet<SpoolId>,
}

impl Account {
    fn note(&mut self, stored: &Stored, id: SpoolId, data: Option<&[u8]>) {
        let Some(data) = data else {
            self.damaged.insert(id);
            return;
        };
        let seen = payload::read(id, data).expect("wrong bytes");
        match stored.live.get(&id) {
            Some((version, len)) if seen.version == Some(*version) && seen.len == *len => {
                self.whole.insert(id)
            }
            Some(_) => self.older.insert(id),
            None => {
                assert!(stored.removed.contains(&id), "{id} was never stored");
                self.back.insert(id)
            }
        };
    }

    fn end(&mut self, stored: &Stored) {
        let is_here =
            |id: &&SpoolId| self.whole.contains(id) || self.damaged.contains(id) || self.older.contains(id);
        self.missing = stored.live.keys().filter(|id| !is_here(id)).copied().collect();
    }

    /// No message is missing, outdated or restored. Damaged messages report themselves.
    fn is_complete_but_for_damage(&self) -> bool {
        self.missing.is_empty() && self.older.is_empty() && self.back.is_empty()
    }

    fn in_short(&self) -> String {
        let Self { whole, damaged, missing, older, back } = self;
        format!(
            "{} whole, {} damaged, {} missing, {} older, {} back",
            whole.len(),
            damaged.len(),
            missing.len(),
            older.len(),
            back.len()
        )
    }
}

/// Opens the spool, and reads it by load and by enumerate. A typed error of the opening is returned
/// as text.
async fn open(dir: &Path, stored: &Stored) -> Result<(Account, RecoveryReport), String> {
    let opened = tokio::time::timeout(PATIENCE, TieredSpool::open(config(dir))).await.expect("open hangs");
    let spool = match opened {
        Ok(spool) => Arc::new(spool),
        Err(error) => {
            let root = error.root_cause();
            assert!(
                root.is::<DamagedSpool>() || root.is::<UnsupportedFormat>(),
                "not a typed error: {error:#}"
            );
            return Err(format!("{error:#}"));
        }
    };
    let mut account = Account::default();
    for id in stored.live.keys().chain(&stored.removed) {
        match spool.load(*id).await {
            Ok(data) => account.note(stored, *id, Some(&data)),
            Err(error) if error.root_cause().is::<Corrupt>() => account.note(stored, *id, None),
            Err(error) => assert!(error.root_cause().is::<NotFound>(), "{error:#}"),
        }
    }
    account.end(stored);
    let mut listed = Account::default();
    for entry in enumerate(spool.as_ref()).await {
        match entry {
            SpoolEntry::Item { id, data } => listed.note(stored, id, Some(&data)),
            SpoolEntry::Corrupt { id, .. } => listed.note(stored, id, None),
        }
    }
    listed.end(stored);
    assert_eq!(listed.in_short(), account.in_short(), "enumerate and load");
    // Losses in checkpointed segments are counted by the rebuild of the index, which the loads have
    // awaited.
    let mut report = spool.recovery().clone();
    report.lost = spool.stats().lost;
    tokio::time::timeout(PATIENCE, spool.shutdown()).await.expect("shutdown hangs").ok();
    Ok((account, report))
}

fn verify(dir: &Path) -> Verification {
    match Inspector::open(dir) {
        Ok(spool) => spool.verify().expect("verify"),
        Err(error) => {
            let root = error.root_cause();
            assert!(root.is::<DamagedSpool>() || root.is::<UnsupportedFormat>(), "{error:#}");
            let what = format!("{error:#}");
            let damage = Damage { path: "FORMAT".to_owned(), spool: None, id: None, what };
            Verification { damage: vec![damage], ..Verification::default() }
        }
    }
}

/// Repairs the spool and reads the new one.
fn repair(dir: &Path, new: &Path, stored: &Stored) -> (Account, Salvage) {
    let before = contents(dir);
    let report = salvage(dir, new).unwrap_or_else(|error| panic!("repair: {error:#}"));
    assert!(contents(dir) == before, "the damaged spool was changed");
    let spool = Inspector::open(new).expect("the new spool");
    let mut account = Account::default();
    let mut ids = Vec::new();
    spool
        .entries(&mut |entry| {
            ids.push((entry.spool, entry.id));
            true
        })
        .unwrap();
    assert_eq!(ids.len() as u64, report.saved);
    for (name, id) in ids {
        account.note(stored, id, Some(&spool.load(&name, id).expect("whole")));
    }
    account.end(stored);
    (account, report)
}

async fn trial(base: &Path, seed: u64) -> String {
    let mut rng = SmallRng::seed_from_u64(seed);
    let image = ["closed", "killed", "cleaned"][rng.random_range(0..3)];
    let stored: Stored =
        serde_json::from_str(&fs::read_to_string(base.join(format!("{image}.json"))).unwrap()).unwrap();
    let dir = TempDir::new().unwrap();
    let [damaged, opened] = ["damaged", "opened"].map(|name| dir.path().join(name));
    copy_dir(&base.join(image), &damaged);
    let (name, how) = damage(&damaged, &base.join("stale"), &mut rng);
    copy_dir(&damaged, &opened);
    let (saved, salvage) = repair(&damaged, &dir.path().join("new"), &stored);
    let verified = verify(&damaged);
    let found = open(&opened, &stored).await;

    let line = format!(
        "seed {seed}: {image}, {how}: open {}; verify {}; repair {}, {} unsaved, {} lost, {} doubtful",
        match &found {
            Ok((account, report)) => format!("{}, {} lost", account.in_short(), report.lost),
            Err(error) => format!("refuses ({error})"),
        },
        if verified.damage.is_empty() { "whole" } else { "damaged" },
        saved.in_short(),
        salvage.unsaved.len(),
        salvage.lost,
        salvage.doubtful.len(),
    );
    // The end of a journal that was not closed is recorded nowhere else.
    let end_may_go = image == "killed" && holds_the_end(base, image, &name, &how);
    judge(&found, &verified, &saved, &salvage, end_may_go)
        .unwrap_or_else(|what| panic!("{what}\n{line}\n{found:?}\n{verified:?}\n{saved:?}\n{salvage:?}"));
    line
}

/// True if the damage is to the newest segment.
fn holds_the_end(base: &Path, image: &str, name: &Path, how: &str) -> bool {
    // Considers journal segments only: role 1.
    let generation = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        let field = |from: usize, to: usize| bytes[from..to].try_into().unwrap();
        (u32::from_le_bytes(bytes[12..16].try_into().unwrap()) == 1)
            .then(|| u64::from_le_bytes(field(16, 24)))
    };
    let dir = base.join(image);
    let newest = files(&dir)[2].iter().max_by_key(|path| generation(path)).unwrap().clone();
    let newest = newest.strip_prefix(&dir).unwrap().to_owned();
    name == newest || how.contains(&newest.display().to_string())
}

fn judge(
    found: &Result<(Account, RecoveryReport), String>,
    verified: &Verification,
    saved: &Account,
    salvage: &Salvage,
    end_may_go: bool,
) -> Result<(), String> {
    let check = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
    let whole = verified.damage.is_empty();
    if let Ok((account, report)) = found {
        let silent = report.damage.is_empty() && report.lost == 0;
        check(
            !silent || account.is_complete_but_for_damage() || end_may_go,
            "open: a message is gone, and nothing is reported",
        )?;
        // Where older records replace lost ones, the number of records does not show the loss.
        let reported = report.lost + (account.older.len() + account.back.len()) as u64;
        let counted = account.missing.len() as u64 <= reported;
        // Without the manifest the number of messages is unknown.
        let not_known = |damage: &Damage| damage.what.contains("what is checkpointed is not known");
        let not_known = report.damage.len() > 1 && report.damage.iter().any(not_known);
        check(counted || end_may_go || not_known, "open: more is missing than was counted")?;
        check(
            account.older.is_empty() || !silent || end_may_go,
            "open: an older version, and nothing is reported",
        )?;
        check(
            !whole || (account.is_complete_but_for_damage() && account.damaged.is_empty()) || end_may_go,
            "verify finds nothing, open does",
        )?;
        let less = account.whole.difference(&saved.whole).count();
        check(less == 0, "repair saved less than open found")?;
    } else {
        check(!whole, "verify finds nothing, but the spool can't be opened")?;
    }
    let named = salvage.unsaved.iter().filter(|damage| damage.id.is_some()).count() as u64;
    let unknown = salvage.unsaved.iter().any(|damage| damage.id.is_none());
    let gone = (saved.missing.len()) as u64;
    check(
        gone <= named + salvage.lost || unknown || end_may_go,
        "repair: more is missing than was reported",
    )?;
    let doubted: BTreeSet<SpoolId> = salvage.doubtful.iter().filter_map(|damage| damage.id).collect();
    let odd = saved.older.union(&saved.back).filter(|id| !doubted.contains(id)).count();
    check(
        odd == 0 || unknown || salvage.lost > 0 || end_may_go,
        "repair: removed or older messages are back, unreported",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn trials_of_a_process() {
    // Does nothing when run as a test: the test below starts it in a child process.
    let (Ok(seeds), Ok(base)) = (std::env::var(SEEDS), std::env::var(BASE)) else { return };
    let (from, to) = seeds.split_once('-').unwrap();
    for seed in from.parse().unwrap()..to.parse().unwrap() {
        println!("\nseed {seed} begins");
        println!("\n{}", trial(Path::new(&base), seed).await);
    }
}

/// Whatever file is damaged, a message is correct, `Corrupt`, or reported as lost. `verify` and
/// `repair` agree with the opening.
#[tokio::test(flavor = "multi_thread")]
async fn any_damage_is_reported_and_the_rest_is_saved() {
    let first = seed_from_env("TIDESPOOL_DAMAGE_SEED");
    let count = number_from_env("TIDESPOOL_DAMAGE_TRIALS").unwrap_or(100);
    println!("TIDESPOOL_DAMAGE_SEED={first}");
    let base = TempDir::new().unwrap();
    // The images depend on the thousand of the seed, so that a seed replays its trial.
    let mut images = None;
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    let mut from = first;
    while from < first + count {
        let thousand = from / 1000;
        let dir = base.path().join(thousand.to_string());
        if images != Some(thousand) {
            make_images(&dir, thousand).await;
            images = Some(thousand);
        }
        let to = (from + TRIALS_A_PROCESS).min(first + count).min((thousand + 1) * 1000);
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "damage_trials::trials_of_a_process", "--nocapture"])
            .env(SEEDS, format!("{from}-{to}"))
            .env(BASE, &dir)
            .env("RUST_BACKTRACE", "0")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let reported: Vec<&str> = text.lines().filter(|line| line.starts_with("seed ")).collect();
        lines.extend(reported.iter().filter(|line| !line.ends_with("begins")).map(|&line| line.to_owned()));
        from = to;
        if !output.status.success() {
            // The trial in progress failed. The seeds after it are still to be run.
            let errors = String::from_utf8_lossy(&output.stderr);
            let last = reported.last().unwrap_or(&"none");
            failures.push(format!("{last}\n{errors}"));
            let seed = last.split_whitespace().nth(1).and_then(|seed| seed.parse::<u64>().ok());
            from = seed.map_or(to, |seed| seed + 1);
        }
    }
    println!("{}", lines.join("\n"));
    assert!(failures.is_empty(), "{} of {count} trials failed:\n{}", failures.len(), failures.join("\n"));
    // Checks that the trials reach each kind of outcome.
    if count >= 100 {
        for outcome in ["open refuses", "verify whole", "verify damaged", " lost; verify"] {
            assert!(lines.iter().any(|line| line.contains(outcome)), "no {outcome}");
        }
    }
}
