"""Archive to submission for Kaggle's *Histopathologic Cancer Detection*, every number traceable.

Rooms
-----
Stages, in pipeline order, each ``python -m src.<stage>``, a stage of ``dvc.yaml`` and a section of
``params.yaml``: ``sample ingest split explore train finetune evaluate register predict``.
Commands beside the pipeline: ``promote`` (who is champion), ``trace`` (where a submission comes
from), ``submit`` (to Kaggle). What several of them share stands beside them: ``training``,
``deciding``.

==============  ==============================================================================
``data``        what a patch is: archives, TIFF decoding, checks, grouping, splitting, store
``drawing``     the generated archive: patches whose label shows in shapes and not in colours
``model``       the classifier: ResNet50, preprocessing inside; frozen trunk computed once,
                training loop, exact resume, schedules, devices
``evaluation``  what a score means: metrics, intervals, calibration, operating point, figures
``tracking``    what happened: MLflow runs, registry, lineage. The only room that imports mlflow
``system``      durable writes, locks, determinism, logging, progress, errors
``tuning``      of the command ``tune``: space, study, trials, worker processes, reports
==============  ==============================================================================

Import rule
-----------
Stages may import every room; ``data``, ``drawing``, ``model``, ``evaluation`` and ``tracking``
may import ``system``, ``src.params`` and ``src.paths``; ``model`` and ``drawing`` may import
``data``; ``tuning`` may import every room and no room imports it; nothing imports a stage.
TensorFlow and MLflow are imported only where used, never while ``--help`` is printed.
``tests/test_rooms.py`` holds this.

Glossary
--------
patch             one 96 × 96 px RGB image
slide             the whole-slide image a patch was cut from
group             patches that stay on one side of a split: a slide or its stand-in, duplicates
split             train / val / holdout; *test* always means Kaggle's unlabelled patches
label             0 normal, 1 tumour in the centre 32 × 32 px
logit             the classifier's output before the sigmoid; *probability* after it
backbone          the convolutional network without its classifying head
trunk / tail      the frozen lower part / the trained upper part of the classifier
head              pooling, dropout and the one logit unit on top of the backbone
depth             residual blocks unfrozen, counted from the top (0 … 16)
view              one of the 8 flips and rotations of the square (D4)
operating point   the threshold on the probability, with the rule that chose it on val
champion          the registered version that makes the submission; *challenger*: the newest one
"""
