//! Opens the engines for the bench.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use async_trait::async_trait;
use tidespool_bench::{Builtin, Engine, Needs, Opener};

use crate::engines::{Peer, Setup};

#[async_trait]
impl Opener for Peer {
    fn name(&self) -> &str {
        Self::name(*self)
    }

    async fn open(&self, dir: &Path, needs: &Needs) -> Result<Engine> {
        match self {
            // The bench opens these with its own needs.
            Self::Tidespool => Builtin::Tidespool.open(dir, needs).await,
            Self::RawJournal => Builtin::RawJournal.open(dir, needs).await,
            Self::Bare => Builtin::Bare.open(dir, needs).await,
            peer => {
                let setup = Setup { small_caches: needs.small_caches, ..Setup::default() };
                Ok(Engine::Spool(Self::open(*peer, dir, setup).await?))
            }
        }
    }

    fn filler(&self) -> Result<Command> {
        let mut command = this_program()?;
        command.args(["fill", "--engine", Self::name(*self)]);
        Ok(command)
    }

    fn neighbour(&self) -> Result<Command> {
        let mut command = this_program()?;
        command.arg("write-beside");
        Ok(command)
    }
}

fn this_program() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("looking for this program's own file")?))
}
