"""Which keys KubeRay's manifests may have, on the levels that ours touch.

From the CRDs of KubeRay 1.6.0, the oldest version that our manifests name, which has `authOptions.secretName`:
github.com/ray-project/kuberay, tag v1.6.0, helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml and
ray.io_rayjobs.yaml, version v1. All of these are in 1.7.0 as well. The API server drops a key that isn't in them, and
only warns of it.
"""

from typing import Any


def _values(names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), Any)


STRINGS = {"*": str}
"""Any keys, but only strings as values."""

ENVIRONMENT = [
    _values("name value")
    | {
        "valueFrom": _values("configMapKeyRef fieldRef fileKeyRef resourceFieldRef")
        | {"secretKeyRef": _values("key name optional")}
    }
]
ENVIRONMENT_FROM = [_values("prefix configMapRef") | {"secretRef": _values("name optional")}]
RESOURCES = _values("claims limits requests")

CONTAINER = _values(
    "args command image imagePullPolicy lifecycle livenessProbe name readinessProbe resizePolicy restartPolicy "
    "startupProbe stdin stdinOnce terminationMessagePath terminationMessagePolicy tty volumeDevices workingDir"
) | {
    "env": ENVIRONMENT,
    "envFrom": ENVIRONMENT_FROM,
    "ports": [_values("containerPort hostIP hostPort name protocol")],
    "resources": RESOURCES,
    "securityContext": _values(
        "allowPrivilegeEscalation appArmorProfile capabilities privileged procMount readOnlyRootFilesystem runAsGroup "
        "runAsNonRoot runAsUser seLinuxOptions seccompProfile windowsOptions"
    ),
    "volumeMounts": [_values("mountPath mountPropagation name readOnly recursiveReadOnly subPath subPathExpr")],
}

POD = _values(
    "activeDeadlineSeconds affinity automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks "
    "ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers hostname imagePullSecrets nodeName os "
    "overhead preemptionPolicy priority priorityClassName readinessGates resourceClaims restartPolicy runtimeClassName "
    "schedulerName schedulingGates serviceAccount serviceAccountName setHostnameAsFQDN shareProcessNamespace subdomain "
    "terminationGracePeriodSeconds topologySpreadConstraints"
) | {
    "containers": [CONTAINER],
    "initContainers": [CONTAINER],
    "nodeSelector": STRINGS,
    "securityContext": _values(
        "appArmorProfile fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser seLinuxChangePolicy "
        "seLinuxOptions seccompProfile supplementalGroups supplementalGroupsPolicy sysctls windowsOptions"
    ),
    "tolerations": [_values("effect key operator tolerationSeconds value")],
    "volumes": [
        _values("csi downwardAPI emptyDir ephemeral hostPath name nfs projected")
        | {
            "configMap": _values("defaultMode items name optional"),
            "persistentVolumeClaim": _values("claimName readOnly"),
            "secret": _values("defaultMode items optional secretName"),
        }
    ],
}

TEMPLATE = {"metadata": _values("annotations finalizers labels name namespace"), "spec": POD}

CLUSTER_SPEC = _values(
    "enableInTreeAutoscaling gcsFaultToleranceOptions headServiceAnnotations managedBy rayVersion suspend "
    "upgradeStrategy"
) | {
    "authOptions": _values("enableK8sTokenAuth mode secretName"),
    "autoscalerOptions": _values("idleTimeoutSeconds image imagePullPolicy securityContext upscalingMode version")
    | {"env": ENVIRONMENT, "envFrom": ENVIRONMENT_FROM, "resources": RESOURCES}
    | {"volumeMounts": CONTAINER["volumeMounts"]},
    "headGroupSpec": _values("enableIngress headService serviceType")
    | {"labels": STRINGS, "rayStartParams": STRINGS, "resources": STRINGS, "template": TEMPLATE},
    "workerGroupSpecs": [
        _values("groupName idleTimeoutSeconds maxReplicas minReplicas numOfHosts replicas scaleStrategy suspend")
        | {"labels": STRINGS, "rayStartParams": STRINGS, "resources": STRINGS, "template": TEMPLATE}
    ],
}

OBJECT = _values("apiVersion kind") | {"metadata": _values("annotations labels name namespace")}

MANIFESTS = {
    "RayCluster": OBJECT | {"spec": CLUSTER_SPEC},
    "RayJob": OBJECT
    | {
        "spec": _values(
            "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
            "entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds runtimeEnvYAML "
            "shutdownAfterJobFinishes submissionMode submitterConfig suspend ttlSecondsAfterFinished"
        )
        | {"rayClusterSpec": CLUSTER_SPEC, "submitterPodTemplate": TEMPLATE}
    },
    # Kubernetes' own, core/v1
    "PersistentVolumeClaim": OBJECT
    | {
        "spec": _values("accessModes dataSource dataSourceRef selector storageClassName volumeMode volumeName")
        | {"resources": _values("limits requests")}
    },
}


def faults(value: Any, allowed: Any, path: str = "") -> list[str]:
    """Where a manifest has what it may not have."""
    if allowed is Any:
        return []
    if allowed is str:
        return [] if isinstance(value, str) else [f"{path} must be a string"]
    if isinstance(allowed, list):
        if not isinstance(value, list):
            return [f"{path} must be a list"]
        return [fault for index, item in enumerate(value) for fault in faults(item, allowed[0], f"{path}[{index}]")]
    if not isinstance(value, dict):
        return [f"{path} must be a mapping"]
    found = []
    for key, item in value.items():
        if key not in allowed and "*" not in allowed:
            found.append(f"{path}.{key} is unknown")
        else:
            found += faults(item, allowed.get(key, allowed.get("*")), f"{path}.{key}")
    return found
