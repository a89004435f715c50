"""Annotators: one file per source of an image's objects, chosen by ``annotator=``."""

from dejavu_lit.utils.choices import Choices

ANNOTATORS = Choices(
    "annotator",
    "dejavu_lit.annotators",
    {
        "agree": "dejavu_lit.objects.annotators.agreement:Agreement",
        "captions": "dejavu_lit.objects.annotators.captions:OtherCaptions",
        "classes": "dejavu_lit.objects.annotators.classes:ClassLabels",
        "coco": "dejavu_lit.objects.annotators.coco:CocoLookup",
        "detectron2": "dejavu_lit.objects.annotators.detectron2:Detectron2Detector",
        "open_vocabulary": "dejavu_lit.objects.annotators.open_vocabulary:OpenVocabularyDetector",
        "table": "dejavu_lit.objects.annotators.table:TableLookup",
        "torchvision": "dejavu_lit.objects.annotators.torchvision:TorchvisionDetector",
    },
)
