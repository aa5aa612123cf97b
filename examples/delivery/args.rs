//! The options.

use std::path::PathBuf;

use clap::Parser;

/// Accepts messages into a spool, delivers them to a folder, and checks that what arrived equals what was sent.
#[derive(Debug, Clone, Parser)]
#[command(name = "delivery", after_help = EXIT_CODES)]
pub(crate) struct Args {
    /// Takes the messages of this Maildir (its folders `cur` and `new`) instead of the example's own
    #[arg(long, value_name = "DIR", group = "input")]
    pub(crate) maildir: Option<PathBuf>,

    /// Takes the messages of this mbox file
    #[arg(long, value_name = "FILE", group = "input")]
    pub(crate) mbox: Option<PathBuf>,

    /// Takes the `.eml` files of this folder
    #[arg(long, value_name = "DIR", group = "input")]
    pub(crate) eml: Option<PathBuf>,

    /// How many messages to accept; those of the input are taken in turn, again and again
    #[arg(long, value_name = "N", default_value_t = 3_600,
          value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) messages: u64,

    /// Messages accepted in a second; 0: as fast as it goes
    #[arg(long, value_name = "MSG_PER_S", default_value_t = 300,
          value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) rate: u32,

    /// Messages being accepted at the same time, and as many being delivered
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1_024))]
    pub(crate) concurrency: u16,

    /// Of 100 delivery attempts, how many fail; a tenth of those for good
    #[arg(long, value_name = "PERCENT", default_value_t = 15, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) failures: u8,

    /// Decides which attempts fail, and how long each retry waits
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Where the two spools live [default: tidespool-delivery in the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    pub(crate) spool: Option<PathBuf>,

    /// Where messages are delivered to [default: the folder sink in the spool directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) sink: Option<PathBuf>,

    /// Acknowledges a message only when it is on stable storage
    #[arg(long)]
    pub(crate) sync: bool,

    /// Prints the result as one line of JSON, and the progress to stderr
    #[arg(long)]
    pub(crate) json: bool,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    everything accepted arrived, byte for byte
  1    something is wrong: it is named
  2    an option, a file or a folder cannot be worked with
  3    a killed run without --sync lost messages of its last moments, as documented; all others arrived
  130  stopped with Ctrl-C: the same command goes on from there";

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
    fn one_input_at_a_time() {
        assert!(Args::try_parse_from(["delivery"]).is_ok());
        assert!(Args::try_parse_from(["delivery", "--eml", "a", "--mbox", "b"]).is_err());
        assert!(Args::try_parse_from(["delivery", "--messages", "0"]).is_err());
        assert!(Args::try_parse_from(["delivery", "--failures", "101"]).is_err());
    }

    #[test]
    fn the_sink_is_in_the_spool_directory_unless_told_otherwise() {
        let args = Args::try_parse_from(["delivery", "--spool", "/x"]).unwrap();
        assert_eq!(args.sink_dir(), PathBuf::from("/x/sink"));
        let args = Args::try_parse_from(["delivery", "--spool", "/x", "--sink", "/y"]).unwrap();
        assert_eq!(args.sink_dir(), PathBuf::from("/y"));
    }
}
