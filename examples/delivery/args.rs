//! The command-line options.

use std::path::PathBuf;

use clap::Parser;

/// Accepts messages into a spool, delivers them to a folder, and compares them with the originals
#[derive(Debug, Clone, Parser)]
#[command(name = "delivery", after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// Reads the messages of this Maildir (its folders `cur` and `new`) instead of the built-in
    /// ones
    #[arg(long, value_name = "DIR", group = "input")]
    pub(crate) maildir: Option<PathBuf>,

    /// Reads the messages of this mbox file
    #[arg(long, value_name = "FILE", group = "input")]
    pub(crate) mbox: Option<PathBuf>,

    /// Reads the `.eml` files of this folder
    #[arg(long, value_name = "DIR", group = "input")]
    pub(crate) eml: Option<PathBuf>,

    /// Number of messages to accept; the input is repeated until this number is reached
    #[arg(long, value_name = "N", default_value_t = 3_600,
          value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) messages: u64,

    /// Messages accepted per second; 0 means no limit
    #[arg(long, value_name = "MSG_PER_S", default_value_t = 300,
          value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) rate: u32,

    /// Number of concurrent accepts, and of concurrent deliveries
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1_024))]
    pub(crate) concurrency: u16,

    /// Percentage of delivery attempts that fail; a tenth of the failures are permanent
    #[arg(long, value_name = "PERCENT", default_value_t = 15, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) failures: u8,

    /// Seed that decides which attempts fail and how long each retry waits
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Directory of the two spools [default: tidespool-delivery in the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) spool: Option<PathBuf>,

    /// Directory that receives the deliveries [default: the folder sink in the spool directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) sink: Option<PathBuf>,

    /// Acknowledges a message only after it is on stable storage
    #[arg(long)]
    pub(crate) sync: bool,

    /// Prints the result as one line of JSON, and the progress to stderr
    #[arg(long)]
    pub(crate) json: bool,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    everything accepted arrived, byte for byte
  1    something is wrong; the output names it
  2    an option, a file or a folder cannot be used
  3    a killed run without --sync lost messages acknowledged shortly before the kill, as documented
  130  stopped with Ctrl-C: the same command continues the run";

impl Args {
    pub(crate) fn spool_dir(&self) -> PathBuf {
        self.spool.clone().unwrap_or_else(|| std::env::temp_dir().join("tidespool-delivery"))
    }

    pub(crate) fn sink_dir(&self) -> PathBuf {
        self.sink.clone().unwrap_or_else(|| self.spool_dir().join("sink"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_one_input_is_accepted() {
        assert!(Args::try_parse_from(["delivery"]).is_ok());
        assert!(Args::try_parse_from(["delivery", "--eml", "a", "--mbox", "b"]).is_err());
        assert!(Args::try_parse_from(["delivery", "--messages", "0"]).is_err());
        assert!(Args::try_parse_from(["delivery", "--failures", "101"]).is_err());
    }

    #[test]
    fn the_sink_defaults_to_a_folder_in_the_spool_directory() {
        let args = Args::try_parse_from(["delivery", "--spool", "/x"]).unwrap();
        assert_eq!(args.sink_dir(), PathBuf::from("/x/sink"));
        let args = Args::try_parse_from(["delivery", "--spool", "/x", "--sink", "/y"]).unwrap();
        assert_eq!(args.sink_dir(), PathBuf::from("/y"));
    }
}
