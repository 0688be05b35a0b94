//! Steady load while something happens: a few clients that ask again and again
//! until told to stop, and an account of every answer.

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ask::{Answer, Asker, Question};

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    stop: CancellationToken,
    clients: JoinSet<Account>,
    answered: watch::Receiver<usize>,
}

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// Streams and whole answers in turn.
    InTurn,
    /// Whole answers alone.
    Whole,
}

/// What the clients saw.
#[derive(Debug, Default)]
pub struct Account {
    /// Answers that came whole.
    pub whole: usize,
    /// Everything else: refusals, broken streams, failed connections.
    pub failed: Vec<String>,
}

impl Load {
    /// Starts `clients` that ask one question after the other, streams and
    /// whole answers in turn.
    #[must_use]
    pub fn start(asker: &Asker, question: &Question, clients: usize) -> Self {
        Self::of(asker, question, clients, Wish::InTurn)
    }

    /// As [`start`](Self::start), but for whole answers alone.
    #[must_use]
    pub fn of_whole_answers(asker: &Asker, question: &Question, clients: usize) -> Self {
        Self::of(asker, question, clients, Wish::Whole)
    }

    fn of(asker: &Asker, question: &Question, clients: usize, wish: Wish) -> Self {
        let stop = CancellationToken::new();
        let (told, answered) = watch::channel(0);
        let mut set = JoinSet::new();
        for client in 0..clients {
            let (asker, question, stop) = (asker.clone(), question.clone(), stop.clone());
            let told = told.clone();
            set.spawn(
                async move { ask_until(&stop, &asker, &question, (client, wish), &told).await },
            );
        }
        Self {
            stop,
            clients: set,
            answered,
        }
    }

    /// Waits until as many answers came as there are clients.
    pub async fn is_under_way(&mut self) {
        let clients = self.clients.len();
        // Clients that are gone tell why at the end.
        let _ = self.answered.wait_for(|count| *count >= clients).await;
    }

    /// Lets every client finish its last question and adds up what they saw.
    pub async fn stop(self) -> Account {
        self.stop.cancel();
        let accounts = self.clients.join_all().await;
        accounts
            .into_iter()
            .fold(Account::default(), |mut sum, account| {
                sum.whole += account.whole;
                sum.failed.extend(account.failed);
                sum
            })
    }
}

async fn ask_until(
    stop: &CancellationToken,
    asker: &Asker,
    question: &Question,
    (client, wish): (usize, Wish),
    answered: &watch::Sender<usize>,
) -> Account {
    let mut account = Account::default();
    for turn in client.. {
        if stop.is_cancelled() {
            break;
        }
        let answer = if wish == Wish::InTurn && turn % 2 == 0 {
            asker.stream(question).await
        } else {
            asker.whole(question).await
        };
        account.add(answer);
        answered.send_modify(|count| *count += 1);
    }
    account
}

impl Account {
    fn add(&mut self, answer: reqwest::Result<Answer>) {
        match answer {
            Ok(answer) if answer.is_whole() => self.whole += 1,
            Ok(answer) => self.failed.push(format!("{answer:?}")),
            Err(error) => self.failed.push(format!("{error:?}")),
        }
    }
}
