//! The flags of `llava-worker serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::matmul::WeightFormat;
use crate::model::{DeviceChoice, Dtype, LoadOptions};
use shell::args::ShellArgs;

use super::limits::{LimitArgs, seconds};

/// Loads one model and answers requests for it
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// The checkpoint: a directory, `hf://owner/name[@revision]`, `https://…`, `s3://…`, `gs://…` or `az://…`
    #[arg(long, value_name = "SOURCE")]
    pub model: String,

    /// The language model under a LoRA or projector-only checkpoint
    #[arg(long, value_name = "SOURCE")]
    pub base: Option<String>,

    /// The vision tower's folder, for a checkpoint that only names it
    #[arg(long, value_name = "DIR")]
    pub vision_tower: Option<PathBuf>,

    /// The name that requests use; the last part of the source when left out
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,

    /// Another name that requests may use; may be repeated
    #[arg(long = "model-alias", value_name = "NAME")]
    pub model_aliases: Vec<String>,

    /// Address of the API
    #[arg(long, default_value = "0.0.0.0:8000", value_name = "ADDR")]
    pub listen: SocketAddr,

    /// Number format of the computation on a CUDA device, bf16 when left out; processors compute in f32 whatever is asked for
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,

    /// Form in which weights are kept: none, int8 or int4
    #[arg(long, value_name = "FORM", default_value_t)]
    pub quantization: WeightFormat,

    /// Where to run: cpu, cuda or cuda:NUMBER
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceChoice,

    /// Threads for the model; one for each processor when left out
    #[arg(long, value_name = "THREADS")]
    pub threads: Option<usize>,

    /// Longest sequence in tokens; the checkpoint's own when left out
    #[arg(long, value_name = "TOKENS")]
    pub context_length: Option<usize>,

    /// Sequences that run at once
    #[arg(long, default_value_t = 16, value_name = "SEQUENCES")]
    pub max_running_requests: usize,

    /// Memory for keys and values; most of what is free after loading when left out
    #[arg(long, value_name = "BYTES")]
    pub kv_memory: Option<usize>,

    /// Memory for encoded images of earlier requests
    #[arg(long, default_value_t = 256 << 20, value_name = "BYTES")]
    pub image_cache: usize,

    /// Prompt tokens computed between two steps of the running answers
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    pub prefill_chunk: usize,

    /// Conversation template to use instead of the checkpoint's own
    #[arg(long, value_name = "NAME")]
    pub conversation_template: Option<String>,

    /// How images are brought to shape, instead of the checkpoint's own way
    #[arg(long, value_name = "NAME")]
    pub image_aspect_ratio: Option<String>,

    /// A host that `image_url` may name; may be repeated. Without it no remote image is fetched
    #[arg(long = "allow-image-host", value_name = "HOST")]
    pub image_hosts: Vec<String>,

    /// How long running streams may take to end after SIGTERM
    #[arg(long, default_value = "30", value_parser = seconds, value_name = "SECONDS")]
    pub drain_timeout: Duration,

    /// A step of the engine that takes longer ends the process
    #[arg(long, default_value = "120", value_parser = seconds, value_name = "SECONDS")]
    pub step_timeout: Duration,

    /// Where fetched checkpoints are kept
    #[arg(long, default_value = "/cache", value_name = "DIR")]
    pub cache_dir: PathBuf,

    /// Renew the Lease named by POD_NAME, POD_NAMESPACE and POD_UID
    #[arg(long)]
    pub lease: bool,

    /// Where the last fatal error is written
    #[arg(long, value_name = "FILE")]
    pub termination_log: Option<PathBuf>,

    /// Bounds on requests
    #[command(flatten)]
    pub limits: LimitArgs,

    /// Logs and the admin port
    #[command(flatten)]
    pub shell: ShellArgs,
}

impl ServeArgs {
    /// How the model is loaded, on `base` if it is only a part of one.
    #[must_use]
    pub fn load_options(&self, base: Option<PathBuf>) -> LoadOptions {
        LoadOptions {
            format: self.quantization,
            device: self.device,
            dtype: self.dtype,
            context: self.context_length,
            base,
            vision_tower: self.vision_tower.clone(),
            threads: self.threads,
        }
    }

    /// The names that requests may use, the model's own first.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let own = self.model_name.clone().unwrap_or_else(|| {
            let source = self.model.trim_end_matches('/');
            source.rsplit('/').next().unwrap_or(source).to_owned()
        });
        let mut names = vec![own];
        for alias in &self.model_aliases {
            if !names.contains(alias) {
                names.push(alias.clone());
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: ServeArgs,
    }

    #[test]
    fn what_is_asked_of_the_computation_reaches_the_model() {
        let flags = "worker --model x --device cuda:1 --dtype f16 --threads 3 --context-length 99";
        let program = Program::parse_from(flags.split(' '));
        let options = program.args.load_options(None);
        assert_eq!(options.device, DeviceChoice::Cuda(1));
        assert_eq!(options.dtype, Some(Dtype::F16));
        assert_eq!((options.threads, options.context), (Some(3), Some(99)));
    }
}
