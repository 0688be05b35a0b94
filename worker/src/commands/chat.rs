//! `chat`: a conversation in the terminal (LLaVA's `cli`).

use crate::commands::model_args::ModelArgs;
use crate::commands::sampling_args::SamplingArgs;
use crate::prompt::{Message, Part, Role};
use crate::speaker::{AnswerOptions, Speaker};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};

const HELP: &str = "/image FILE shows a picture, /clear starts again, /quit or an empty line ends";

/// Talks about pictures.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Picture files to begin with
    #[arg(long, value_name = "FILE", num_args = 1..)]
    image: Vec<PathBuf>,
    /// Conversation template to use instead of the checkpoint's own
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
}

/// What a line of input asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Show(&'a Path),
    Clear,
    Quit,
    Help,
    Say(&'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let line = line.trim();
        match line.split_once(char::is_whitespace) {
            Some(("/image", file)) => Self::Show(Path::new(file.trim())),
            _ if line.is_empty() || line == "/quit" => Self::Quit,
            _ if line == "/clear" => Self::Clear,
            _ if line.starts_with('/') => Self::Help,
            _ => Self::Say(line),
        }
    }
}

/// A conversation under way.
struct Chat {
    speaker: Speaker,
    options: AnswerOptions,
    messages: Vec<Message>,
    /// Pictures that the next message will carry.
    shown: usize,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let options = self.sampling.options()?;
        let model = self.model.load()?;
        let mut chat = Chat {
            speaker: Speaker::new(model, &self.model.dir, self.template.as_deref())?,
            options,
            messages: Vec::new(),
            shown: 0,
        };
        for path in &self.image {
            chat.show(path)?;
        }
        eprintln!("{HELP}");
        chat.talk(&mut std::io::stdin().lock(), &mut std::io::stdout())
    }
}

impl Chat {
    fn show(&mut self, path: &Path) -> anyhow::Result<()> {
        self.speaker.show(path)?;
        self.shown += 1;
        Ok(())
    }

    fn talk(&mut self, input: &mut impl BufRead, out: &mut impl Write) -> anyhow::Result<()> {
        let mut line = String::new();
        loop {
            write!(out, "> ")?;
            out.flush()?;
            line.clear();
            if input.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match Line::parse(&line) {
                Line::Quit => return Ok(()),
                Line::Help => eprintln!("{HELP}"),
                Line::Clear => {
                    self.speaker.clear();
                    self.messages.clear();
                    self.shown = 0;
                }
                Line::Show(path) => {
                    if let Err(error) = self.show(path) {
                        eprintln!("{error:#}");
                    }
                }
                Line::Say(text) => self.say(text, out)?,
            }
        }
    }

    fn say(&mut self, text: &str, out: &mut impl Write) -> anyhow::Result<()> {
        let mut parts = vec![Part::Image; self.shown];
        parts.push(Part::text(text));
        self.messages.push(Message::parts(Role::User, parts));
        let answer = self
            .speaker
            .answer(&self.messages, &self.options, &mut |text| {
                out.write_all(text.as_bytes())?;
                out.flush()
            });
        match answer {
            Ok(answer) => {
                self.messages.push(Message::text(Role::Assistant, answer));
                self.shown = 0;
            }
            // The question is taken back, so that a shorter one may follow.
            Err(error) => {
                self.messages.pop();
                eprintln!("{error:#}");
            }
        }
        writeln!(out)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_command_or_something_to_say() {
        for (line, wanted) in [
            ("/image  my cat.png \n", Line::Show(Path::new("my cat.png"))),
            ("/clear\n", Line::Clear),
            ("\n", Line::Quit),
            ("/nonsense\n", Line::Help),
            ("what is this?\n", Line::Say("what is this?")),
        ] {
            assert_eq!(Line::parse(line), wanted, "{line}");
        }
    }
}
