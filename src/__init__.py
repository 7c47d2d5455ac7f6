"""Archive to submission for Kaggle's *Histopathologic Cancer Detection*, every number traceable.

Map
---
Stages, in pipeline order. Each is ``python -m src.<stage>``, a stage in ``dvc.yaml`` and a section
of ``params.yaml``: ``sample ingest split explore train finetune evaluate register predict``.

Commands outside the pipeline: ``tune`` (searches unfreeze depth and learning rates), ``promote``
(decides which version is champion), ``serve`` (answers over HTTP), ``submit`` (to Kaggle),
``trace`` (where a submission comes from).

Shared by everything: ``params`` (``params.yaml``, typed), ``paths`` (every path, once), ``patch``
(every fact about a patch, once).

===============  ==============================================================================
``data``         what a patch is: archives, decoding, checks, packed pixels, groups, splits, batches
``exploration``  what the data looks like: statistics and pictures, before any training
``drawing``      the generated archive: patches whose label shows in shapes, not in colours
``model``        the classifier: ResNet50 with its preprocessing, frozen activations, training loop,
                 exact resume, inference, Grad-CAM
``evaluation``   what a score means: metrics, intervals, calibration, operating point, report
``tracking``     what happened: MLflow runs, registered versions, promotions, lineage. The only room
                 that imports MLflow
``tuning``       the search: space, study, trials, worker processes
``system``       durable writes, locks, determinism, command line, log, progress, errors
===============  ==============================================================================

Import rule
-----------
Stages and commands may import every room; nothing imports a stage or a command. ``data``,
``drawing``, ``exploration``, ``evaluation`` and ``tracking`` may import ``system``; ``drawing``,
``exploration``, ``evaluation`` and ``model`` may import ``data`` too; ``tuning`` may import every
room, and no room imports it. Everything may import ``src.params``, ``src.paths`` and ``src.patch``.
``python -m src.<anything> --help`` loads neither TensorFlow nor MLflow. ``tests/test_rooms.py``
checks all of this, and that this map names what is there.

Glossary
--------
patch             one 96 × 96 px RGB image
slide             the whole-slide image that a patch was cut from
group             patches that must be on the same side of a split: those of a slide (or of a stain
                  cluster standing in for slides), near-duplicates included
split             train / val / holdout; *test* always means Kaggle's unlabelled patches
label             0 normal, 1 tumour in the centre 32 × 32 px
logit             the classifier's output before the sigmoid; *probability* after it
backbone          the convolutional network without its classifying head
trunk / tail      the frozen lower part / the trained upper part of the classifier
head              pooling, dropout and the single logit unit on top of the backbone
depth             residual blocks unfrozen, counted from the top (0 … 16)
view              one of the 8 flips and rotations of the square (D4)
operating point   the threshold on the probability, with the rule that chose it on val
champion          the registered version that makes the submission; *challenger*: the newest one
"""
