use super::*;

/// The numbers of records that `measure` puts in.
const CASES: [u32; 2] = [1_000_000, 3_000_000];

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

fn compare(what: &str, store: &SledStore, base: u64) {
    let (estimate, found) = (store.memory_bytes() >> 20, resident().saturating_sub(base) >> 20);
    let disk = store.size_on_disk() >> 20;
    println!("{what:<14} resident {found:>4} MiB, estimate {estimate:>4}, on disk {disk:>4}");
}

fn measure(count: u32, cache_mib: u64) {
    println!("{count} records, cache of {cache_mib} MiB");
    let (dir, base) = (dir(), resident());
    let engine = with_cache(cache_mib << 20);
    let store = open_with(dir.path(), &engine).unwrap();
    for from in (0..count).step_by(16_384) {
        apply(&store, (from..(from + 16_384).min(count)).map(|n| put(n, place(n.into(), 1_024)))).unwrap();
    }
    compare("written", &store, base);
    store.scan(&[KeyRange::ALL], &mut |_, _| true).unwrap();
    compare("scanned", &store, base);
    close(store);
    let store = open_with(dir.path(), &engine).unwrap();
    store.scan(&[KeyRange::ALL], &mut |_, _| true).unwrap();
    (0..200_000_u32)
        .for_each(|n| assert!(store.get(&key(n.wrapping_mul(2_654_435_761) % count)).unwrap().is_some()));
    compare("opened, read", &store, base);
    for from in (0..count).step_by(32_768) {
        apply(&store, (from..(from + 32_768).min(count)).step_by(2).map(remove)).unwrap();
    }
    compare("half removed", &store, base);
    close(store);
}

/// Run with `cargo test --release -p tidespool --lib index::sled::tests::measure -- --ignored
/// --nocapture`, each case in its own process: `CASE=0`.
#[test]
#[ignore = "measures, and takes minutes"]
fn estimate_and_resident_memory() {
    let case = std::env::var("CASE").ok().and_then(|case| case.parse::<usize>().ok());
    let cache = std::env::var("CACHE_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(16);
    for (number, count) in CASES.into_iter().enumerate() {
        if case.is_none_or(|case| case == number) {
            measure(count, cache);
        }
    }
}
