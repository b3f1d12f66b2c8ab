//! The metrics of a trial: one home for names, definitions and directions.
//!
//! Evaluation writes these names, objectives are checked against them, and the report prints the
//! definitions, so that a number means the same wherever it is read. Names are SAELens' (6.54, `run_evals`)
//! where SAELens has the metric.

/// Direction in which a metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Larger is better.
    Maximize,
    /// Smaller is better.
    Minimize,
}

/// What held-out data must have for a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Activations alone.
    Activations,
    /// A language model that goes on from the hook.
    Model,
    /// Known features.
    Truth,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Column name in tables and key in `result.json`.
    pub name: &'static str,
    /// Heading in reports.
    pub title: &'static str,
    /// The better direction, where there is one by itself.
    pub goal: Option<Goal>,
    /// What the held-out data must have.
    pub needs: Needs,
    /// What it is, with its formula.
    pub definition: &'static str,
}

/// Every metric that a finished trial can have, in the order of reports.
pub const METRICS: &[Metric] = &[
    Metric {
        name: "l0",
        title: "L0",
        goal: None,
        needs: Needs::Activations,
        definition: "mean number of active (non-zero) latents per token",
    },
    Metric {
        name: "ce_loss_score",
        title: "CE-loss score",
        goal: Some(Goal::Maximize),
        needs: Needs::Model,
        definition: "share of the model's cross-entropy loss that the reconstruction keeps: \
                     (CE with zero ablation - CE with SAE) / (CE with zero ablation - CE of the model itself)",
    },
    Metric {
        name: "explained_variance",
        title: "explained variance",
        goal: Some(Goal::Maximize),
        needs: Needs::Activations,
        definition: "1 - E||x - x_hat||² / (E||x||² - ||E x||²) over all held-out tokens",
    },
    Metric {
        name: "explained_variance_legacy",
        title: "explained variance (legacy)",
        goal: Some(Goal::Maximize),
        needs: Needs::Activations,
        definition: "mean over tokens of 1 - ||x - x_hat||² / ||x - mean of its batch||² (batches of 32 sequences, \
                     or of 4096 rows that belong to no sequence), as older SAELens and SAEBench report it",
    },
    Metric {
        name: "mse",
        title: "MSE",
        goal: Some(Goal::Minimize),
        needs: Needs::Activations,
        definition: "mean over tokens of ||x - x_hat||² (summed over the activation's dimensions)",
    },
    Metric {
        name: "cossim",
        title: "cosine similarity",
        goal: Some(Goal::Maximize),
        needs: Needs::Activations,
        definition: "mean over tokens of the cosine between x and x_hat",
    },
    Metric {
        name: "l1",
        title: "L1",
        goal: None,
        needs: Needs::Activations,
        definition: "mean over tokens of the sum of absolute latent activations, in the units the SAE was trained in \
                     (those of topk with `sae.rescale_acts_by_decoder_norm` times the norm of their decoder row)",
    },
    Metric {
        name: "l2_ratio",
        title: "L2 ratio",
        goal: None,
        needs: Needs::Activations,
        definition: "mean over tokens of ||x_hat|| / ||x||; below 1 the SAE shrinks",
    },
    Metric {
        name: "relative_reconstruction_bias",
        title: "relative reconstruction bias",
        goal: None,
        needs: Needs::Activations,
        definition: "E||x_hat||² / E<x, x_hat>, taken over each batch of 32 sequences (or 4096 rows) and averaged over batches; \
                     1 is unbiased, below 1 the SAE shrinks",
    },
    Metric {
        name: "ce_loss_without_sae",
        title: "CE without SAE",
        goal: None,
        needs: Needs::Model,
        definition: "mean next-token cross-entropy of the model itself, in nats",
    },
    Metric {
        name: "ce_loss_with_sae",
        title: "CE with SAE",
        goal: Some(Goal::Minimize),
        needs: Needs::Model,
        definition: "mean next-token cross-entropy with the hook's activations replaced by reconstructions, in nats",
    },
    Metric {
        name: "ce_loss_with_ablation",
        title: "CE with zero ablation",
        goal: None,
        needs: Needs::Model,
        definition: "mean next-token cross-entropy with the hook's activations replaced by zeros, in nats",
    },
    Metric {
        name: "kl_div_score",
        title: "KL score",
        goal: Some(Goal::Maximize),
        needs: Needs::Model,
        definition: "(KL with zero ablation - KL with SAE) / KL with zero ablation",
    },
    Metric {
        name: "kl_div_with_sae",
        title: "KL with SAE",
        goal: Some(Goal::Minimize),
        needs: Needs::Model,
        definition: "mean over tokens of KL(model || model with reconstructions), in nats",
    },
    Metric {
        name: "kl_div_with_ablation",
        title: "KL with zero ablation",
        goal: None,
        needs: Needs::Model,
        definition: "mean over tokens of KL(model || model with zeros at the hook), in nats",
    },
    Metric {
        name: "mmcs",
        title: "MMCS",
        goal: Some(Goal::Maximize),
        needs: Needs::Truth,
        definition: "mean over the true features of their largest cosine similarity with a latent's decoder row \
                     (mean max cosine similarity)",
    },
    Metric {
        name: "recovered_share",
        title: "recovered features",
        goal: Some(Goal::Maximize),
        needs: Needs::Truth,
        definition: "share of the true features whose cosine similarity with some latent's decoder row is above 0.9",
    },
    Metric {
        name: "uniqueness",
        title: "uniqueness",
        goal: Some(Goal::Maximize),
        needs: Needs::Truth,
        definition: "with each latent that fires on held-out rows matched to the true feature of largest cosine \
                     similarity: distinct features matched / latents matched; 1 when no two latents share one",
    },
    Metric {
        name: "true_l0",
        title: "true L0",
        goal: None,
        needs: Needs::Truth,
        definition: "mean number of true features active in a held-out row: the L0 of an SAE that finds them all",
    },
    Metric {
        name: "dead_share",
        title: "dead latents",
        goal: Some(Goal::Minimize),
        needs: Needs::Activations,
        definition: "share of latents that fired on no token of the last `train.dead_feature_window` training steps",
    },
    Metric {
        name: "dense_share",
        title: "dense latents",
        goal: Some(Goal::Minimize),
        needs: Needs::Activations,
        definition: "share of latents that fire on more than 10 % of held-out tokens",
    },
    Metric {
        name: "train_loss",
        title: "final training loss",
        goal: None,
        needs: Needs::Activations,
        definition: "overall training loss of the last step, on scaled activations",
    },
];

/// Finds a metric by name.
pub fn metric(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
    }
}
