//! Watches memory, and asks the caches of a process to free some before the kernel kills it.
//!
//! A [`PressureMonitor`] samples the control group, the machine and the process, and compares use
//! with the nearest limit. While memory is short, it asks the registered clients, each a
//! [`Relief`], to free the excess, in proportion to what each can free. When there is room again,
//! it lets them grow back in small steps. The spool of the crate `tidespool` is such a client. A
//! server can register its own caches beside its spools.
//!
//! ```
//! use std::collections::VecDeque;
//! use std::sync::{Arc, Mutex};
//!
//! use tidespool_pressure::{Level, PressureConfig, PressureMonitor, Relief};
//!
//! /// Rendered pages, the oldest first.
//! #[derive(Default)]
//! struct PageCache(Mutex<VecDeque<String>>);
//!
//! impl Relief for PageCache {
//!     fn relieve(&self, level: Level, excess_bytes: u64) -> isize {
//!         let mut pages = self.0.lock().unwrap();
//!         let wanted = if level == Level::Critical { u64::MAX } else { excess_bytes };
//!         let mut freed = 0;
//!         while freed < wanted && let Some(page) = pages.pop_front() {
//!             freed += page.capacity() as u64;
//!         }
//!         isize::try_from(freed).unwrap_or(isize::MAX)
//!     }
//!
//!     fn reclaimable_bytes(&self) -> u64 {
//!         self.0.lock().unwrap().iter().map(|page| page.capacity() as u64).sum()
//!     }
//! }
//!
//! let pages = Arc::new(PageCache::default());
//! pages.0.lock().unwrap().extend(["old".to_owned(), "young".to_owned()]);
//! // This is what the monitor calls.
//! assert_eq!((pages.relieve(Level::Low, 1), pages.reclaimable_bytes()), (3, 5));
//!
//! let monitor = PressureMonitor::start(PressureConfig::default().memory_limit(4 << 30))?;
//! let client: Arc<dyn Relief> = pages.clone();
//! let registration = monitor.register(&client)?;
//! // The monitor calls `relieve` on its own thread when memory is short, until:
//! drop(registration);
//! # monitor.shutdown();
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Features
//!
//! `monitor`, on by default – the thread `tide-pressure`. Without it, no [`PressureMonitor`] can be
//! made: a library can be written against the types, and leave the choice to the program.
//!
//! # Layout
//!
//! * `config` – the settings and their bounds. `size` – how a file writes a size.
//! * `reading` – level and last sample. `relief` – a client that can free memory.
//! * `monitor` – samples memory use and asks the clients to free memory. Without the feature
//!   `monitor`, `unmonitored.rs` takes its place.
//!
//! It runs on Linux only.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

mod config;
#[cfg_attr(not(feature = "monitor"), path = "unmonitored.rs")]
mod monitor;
mod reading;
mod relief;
mod size;

pub use config::{InvalidSetting, PressureConfig, Setting};
pub use monitor::{PressureMonitor, Registration};
pub use reading::{Level, Reading, Source};
pub use relief::Relief;
