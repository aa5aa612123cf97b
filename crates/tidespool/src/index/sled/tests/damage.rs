//! Damages sled's files in random ways. Every few trials run in a process of their own, because
//! damaged files can make sled's I/O threads fail for the whole process.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::*;

const KEYS: u32 = 3_000;
const SEEDS: &str = "TIDESPOOL_DAMAGE_SEEDS";
const BASE: &str = "TIDESPOOL_DAMAGE_BASE";
/// Far more than any call of a trial needs.
const WAIT: Duration = Duration::from_secs(5);

/// splitmix64: a seed repeats its trial.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

fn record_of(n: u32) -> Record {
    place(n.into(), 20 + n % 400)
}

/// Writes records, and replaces and removes some of them, so that the files have been in use. Makes
/// three images: `closed`, `killed` (as a crash after the last change would leave it) and `stale`
/// (an earlier state).
fn make_images(base: &Path) -> Tally {
    let (dir, store) = new_store();
    let sled = dir.path().join("sled");
    let mut tally = apply(&store, (0..KEYS).map(|n| put(n, place(7, 300)))).unwrap();
    copy(&sled, &base.join("stale"));
    for round in 0..3 {
        tally = tally.plus(apply(&store, (0..KEYS).filter(|n| n % 3 == round).map(remove)).unwrap());
        tally = tally.plus(apply(&store, (0..KEYS).map(|n| put(n, record_of(n)))).unwrap());
    }
    copy(&sled, &base.join("killed"));
    close(store);
    // A second open writes a snapshot.
    close(open(dir.path()));
    copy(&sled, &base.join("closed"));
    tally
}

fn copy(sled: &Path, to: &Path) {
    fs::create_dir_all(to.join("blobs")).unwrap();
    for file in files_in(sled) {
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

fn files_in(sled: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(sled).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
    files.sort();
    files
}

/// Damages one of sled's files and describes the damage.
fn damage(sled: &Path, stale: &Path, random: &mut Random) -> String {
    let files = files_in(sled);
    // The data file has most of the bytes.
    let path = match random.below(3) {
        0 => files[usize::try_from(random.below(files.len() as u64)).unwrap()].clone(),
        _ => sled.join("db"),
    };
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let at = random.below(len);
    let kind = random.below(7);
    match kind {
        0 | 1 => {
            let flips = if kind == 0 { 1 } else { 1 + random.below(200) };
            for _ in 0..flips {
                let at = random.below(len);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ (1 << random.below(8))], at).unwrap();
            }
            format!("{flips} bits flipped in {name}")
        }
        2 => {
            file.set_len(at).unwrap();
            format!("{name} of {len} bytes cut at {at}")
        }
        3 => {
            let count = random.below((len - at).min(200_000)) + 1;
            file.write_all_at(&vec![0; usize::try_from(count).unwrap()], at).unwrap();
            format!("{count} bytes of {name} zeroed from {at}")
        }
        4 => {
            let garbage: Vec<u8> =
                (0..1 + random.below(100_000)).map(|_| random.next().to_le_bytes()[0]).collect();
            file.write_all_at(&garbage, at).unwrap();
            format!("{} bytes of garbage in {name} at {at}", garbage.len())
        }
        5 => {
            fs::copy(stale.join("db"), sled.join("db")).unwrap();
            "db from earlier".to_owned()
        }
        _ => {
            fs::remove_file(&path).unwrap();
            format!("{name} deleted")
        }
    }
}

/// Opens the damaged files and uses them. The result must be a typed error, or the tally must
/// detect the damage.
fn trial(base: &Path, written: Tally, seed: u64) -> String {
    let dir = dir();
    let sled = dir.path().join("sled");
    let mut random = Random(seed);
    let image = if random.below(2) == 0 { "closed" } else { "killed" };
    copy(&base.join(image), &sled);
    let how = damage(&sled, &base.join("stale"), &mut random);
    let engine = with_timeouts(WAIT, WAIT);
    let outcome = match open_with(dir.path(), &engine) {
        Err(err) => format!("open: {err}"),
        Ok(store) => {
            let outcome = use_it(&store, written).unwrap_or_else(|err| format!("used: {err}"));
            drop(store);
            let closed = if engine.threads.join_all(WAIT) > 0 { "; it does not close" } else { "" };
            outcome + closed
        }
    };
    format!("seed {seed}: {image}, {how}: {outcome}")
}

fn use_it(store: &SledStore, written: Tally) -> Result<String, IndexError> {
    let whole = tally_of(store)? == written;
    let found: BTreeMap<_, _> = scan(store)?.into_iter().collect();
    let mut missing = 0;
    for n in 0..KEYS {
        match store.get(&key(n)) {
            // An old version is a complete, formerly correct record. Only the tally can detect it.
            Ok(Some(record)) if whole => assert_eq!(record, record_of(n)),
            Ok(Some(record)) => {
                assert!(record == record_of(n) || record == place(7, 300), "{record:?}");
            }
            Ok(None) => missing += 1,
            Err(err) => return Err(err),
        }
    }
    assert!(
        !whole || (missing == 0 && found.len() == KEYS as usize),
        "records are lost, and the tally does not detect it"
    );
    apply(store, (0..KEYS).step_by(2).map(remove))?;
    apply(store, (0..KEYS).map(|n| put(n, record_of(n))))?;
    assert_eq!(store.get(&key(5))?, Some(record_of(5)));
    Ok(if whole { "whole".to_owned() } else { format!("the tally differs: {missing} missing") })
}

/// Runs the trials of these seeds in a separate process, and returns its lines.
fn run_in_process(base: &Path, seeds: std::ops::Range<u64>) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "index::sled::tests::damage::trials_of_a_process", "--nocapture"])
        .env(SEEDS, format!("{}-{}", seeds.start, seeds.end))
        .env(BASE, base)
        .env("RUST_BACKTRACE", "0")
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<String> = text.lines().filter(|l| l.starts_with("seed ")).map(str::to_owned).collect();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{seeds:?}: {}\n{text}\n{errors}", output.status);
    assert_eq!(lines.len() as u64, seeds.end - seeds.start, "{text}\n{errors}");
    lines
}

#[test]
fn trials_of_a_process() {
    // As a normal test it does nothing. `damaged_files_are_always_detected` runs it in a child
    // process.
    let (Ok(seeds), Ok(base)) = (std::env::var(SEEDS), std::env::var(BASE)) else { return };
    let (from, to) = seeds.split_once('-').unwrap();
    let base = PathBuf::from(base);
    let written = serde_json::from_str(&fs::read_to_string(base.join("tally")).unwrap()).unwrap();
    for seed in from.parse().unwrap()..to.parse().unwrap() {
        println!("\n{}", trial(&base, written, seed));
    }
}

#[test]
fn damaged_files_are_always_detected() {
    let base = dir();
    let written = make_images(base.path());
    fs::write(base.path().join("tally"), serde_json::to_string(&written).unwrap()).unwrap();
    let count = std::env::var("TIDESPOOL_DAMAGE_TRIALS").map_or(60, |count| count.parse().unwrap());
    let mut lines = Vec::new();
    for from in (0..count).step_by(5) {
        lines.extend(run_in_process(base.path(), from..(from + 5).min(count)));
    }
    println!("{}", lines.join("\n"));
    // Without each of these outcomes the trials would not test their purpose.
    for outcome in [": whole", ": the tally differs", ": open: "] {
        assert!(lines.iter().any(|line| line.contains(outcome)), "no{outcome}");
    }
}
